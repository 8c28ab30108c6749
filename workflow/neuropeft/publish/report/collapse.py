"""Runs that have collapsed: they say nearly the same of everybody, or name one class only."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import TEST
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders
from neuropeft.evaluate.predictions import read_predictions
from neuropeft.grid import names_of
from neuropeft.grouping import grouped
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Array, Run

REGIONS, SMALLEST_DICE = "segmentation", 0.01
SMALLEST_SPREAD = 0.1  # of the SD of what is predicted: predictions that correlate by 0.1 spread as little
Collapsed = dict[Contender, tuple[int, int]]  # how many runs, of how many


def collapsed_runs(config: Config, results: Path) -> Collapsed:
    """Return the methods with runs that have collapsed on test subjects of the training cohort.

    A run is one seed and fold. Shuffled labels are left out: there is nothing to learn.

    Raises:
        UserError: a file of predictions cannot be read.
    """
    methods = [one for one in contenders(config) if one.is_method]
    found: Collapsed = {}
    for base, some in grouped(methods, lambda one: one.group[:4]).items():
        task = config.tasks[base[0]]
        path = layout.PREDICTIONS.at(results, **names_of(base), cohort=task.train)
        if not path.is_file():
            continue
        collapsed = finds_nothing if task.kind == REGIONS else has_collapsed
        runs = read_predictions(path, kind_of(task))
        for one in some:
            of_one = [run for key, run in runs.items() if key.subset == one.subset and key.split == TEST]
            count = sum(collapsed(run) for run in of_one)
            if count:
                found[one] = count, len(of_one)
    return found


def finds_nothing(run: Run) -> bool:
    """Whether no region of any scan was found, by scores [n, columns] of which the first is a Dice."""
    return bool(np.nanmax(run.score[:, 0]) < SMALLEST_DICE)


def has_collapsed(run: Run) -> bool:
    """Whether predictions spread less than a tenth of the targets, or all name one class of several."""
    spread, wanted = _spread(run.score), _spread(_as_scores(run))
    if wanted == 0:
        return False  # one class was tested: there is nothing to tell apart
    one_class = run.score.ndim == 2 and run.y.ndim == 1 and len(np.unique(run.score.argmax(axis=1))) == 1
    return bool(spread < SMALLEST_SPREAD * wanted or one_class)


def _as_scores(run: Run) -> Array:
    """Return what scores would be if they were right: targets, or 1 for a class and 0 for the others."""
    if run.score.ndim == 2 and run.y.ndim == 1:
        return (run.y[:, None] == np.arange(run.score.shape[1])).astype(float)
    return run.y


def _spread(values: Array) -> float:
    """Return the SD over subjects [n], of several columns [n, k] the root of their variances' sum."""
    return float(np.sqrt(np.nansum(np.nanvar(np.asarray(values, float), axis=0))))


def warnings(
    config: Config, collapsed: Mapping[Contender, tuple[int, int]], every: Sequence[Contender]
) -> list[str]:
    """Return a sentence for each method that has collapsed, with what did not collapse in its place."""
    found = []
    for one, (count, runs) in collapsed.items():
        beside = [
            other.short
            for other in every
            if other.is_method
            and other not in collapsed
            and (other.group[:3], other.subset) == (one.group[:3], one.subset)
        ]
        advice = (
            f"From the same weights these did not: {', '.join(beside)}. Use one of them, or give {one.short} "
            "a lower learning rate or a longer warm-up."
            if beside
            else "Nothing else from there was trained without it: lower the learning rates, or train longer."
        )
        finds_regions = config.tasks[one.task].kind == REGIONS
        what = "finds next to nothing" if finds_regions else "says nearly the same of everybody"
        found.append(
            f"{one.label} has collapsed for {one.task} at {one.subset.label}: in {count} of {runs} runs it "
            f"{what}. {advice}"
        )
    return found
