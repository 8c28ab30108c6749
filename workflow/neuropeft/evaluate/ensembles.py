"""Ensembles: the mean of what several cells predict, of subjects whom none of them was trained on."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from neuropeft.tasks.base import Array, Run


def mean_run(runs: Sequence[Run | None]) -> Run | None:
    """Return the mean of probabilities, or of values, that several runs predict; None if one is missing.

    Of a test side, all runs have the same subjects. Validation subjects differ between seeds: each has the
    mean of those runs that it validates, since the others may have been trained on it. The prior is the mean,
    too.
    """
    there = [run for run in runs if run is not None]
    if len(there) < len(runs) or not there:
        return None
    scores: dict[str, list[Array]] = defaultdict(list)
    y: dict[str, Array] = {}
    for run in there:
        for subject, target, score in zip(run.subjects, run.y, run.score, strict=True):
            scores[subject].append(score)
            y[subject] = target
    subjects = tuple(sorted(scores))
    return Run(
        subjects,
        np.array([y[subject] for subject in subjects]),
        np.array([np.mean(scores[subject], axis=0) for subject in subjects]),
        np.mean([run.prior for run in there], axis=0),
    )
