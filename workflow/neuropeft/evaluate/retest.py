"""Test-retest: how far apart predictions are of two scans of the same person."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neuropeft.cohorts.splits import TEST, ZERO_SHOT, session_key
from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.files import read_tsv
from neuropeft.subsets import Subset
from neuropeft.tasks.base import Array, TaskKind

FEWEST = 3  # pairs, of which the spread between subjects can be told


def read_pairs(path: Path, kind: TaskKind, subset: Subset, at_home: bool) -> Array:
    """Return what runs predict of the first two scans of each test subject, [runs, subjects, 2].

    Of values these are errors, since a person may be older at the second scan; of classes probabilities, of
    those who are of the same class at both. Runs are seeds, and of several columns each; elsewhere than in
    the training cohort the models of each fold, too. Subjects are those of all runs.

    Args:
        path: the predictions of cells that share a base.
        kind: what is predicted.
        subset: of the cells.
        at_home: whether it is the training cohort, where each fold tests other subjects.
    """
    runs: dict[tuple[str, ...], dict[str, list[Mapping[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_tsv(path):
        if row["split"] in (TEST, ZERO_SHOT) and Subset.parse(row["subset"]) == subset:
            run = (row["seed"],) if at_home else (row["seed"], row["fold"])
            runs[run][row["subject"]].append(row)
    found = [_pairs(of_run, kind) for of_run in runs.values()]
    subjects = sorted(set.intersection(*map(set, found))) if found else []
    values = np.array([[of_run[subject] for subject in subjects] for of_run in found])
    # [runs, subjects, 2, columns] -> [runs * columns, subjects, 2]
    return values.transpose(0, 3, 1, 2).reshape(-1, len(subjects), 2) if subjects else np.empty((0, 0, 2))


def _pairs(of_run: Mapping[str, Sequence[Mapping[str, str]]], kind: TaskKind) -> dict[str, Array]:
    """Return the values of each subject's first two scans, [2, columns]."""
    found = {}
    for subject, rows in of_run.items():
        first = sorted(rows, key=lambda row: (session_key(row["session"]), row["scan_id"]))[:2]
        if len(first) == 2:
            y = [float(row["y"]) if kind.regresses else row["y"] for row in first]
            scores = np.array([[float(row[name]) for name in kind.score_columns] for row in first])
            if kind.regresses:
                found[subject] = scores - np.array(y)[:, None]
            elif y[0] == y[1]:
                found[subject] = scores
    return found


def repeatability(pairs: Array) -> dict[str, float]:
    """Return the SD within subjects and the intraclass correlation of pairs [runs, subjects, 2].

    ICC(1,1) of one-way random effects (Shrout & Fleiss 1979), mean over runs. Intervals, `_low` and `_high`,
    are percentiles of a bootstrap over subjects.
    """
    names = ("within_sd", "icc")
    number = pairs.shape[1]
    point = _measure(pairs, np.ones((1, number)))
    drawn = [_measure(pairs, weights) for weights in resamples(number)]
    found: dict[str, float] = {}
    for place, name in enumerate(names):
        low, high = percentile_interval(np.concatenate([one[place] for one in drawn]))
        found |= {name: float(point[place][0]), f"{name}_low": low, f"{name}_high": high}
    return found


def _measure(pairs: Array, weights: Array) -> tuple[Array, Array]:
    """Return the SD within subjects and the ICC, each [draws], for weights [draws, subjects]."""
    number = pairs.shape[1]
    share = weights / weights.sum(axis=1, keepdims=True)
    middle, within = pairs.mean(axis=2), np.diff(pairs, axis=2)[..., 0] ** 2 / 2  # [runs, subjects]
    inside = share @ within.T  # [draws, runs]
    between = 2 * (share @ (middle**2).T - (share @ middle.T) ** 2) * number / (number - 1)
    with np.errstate(invalid="ignore"):  # predictions that are all alike have no correlation
        icc = (between - inside) / (between + inside)
    return np.sqrt(inside.mean(axis=1)), icc.mean(axis=1)
