"""What is scored at once: test predictions, each row with the rule that its model predicts classes by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuropeft.evaluate.metrics import youden_threshold
from neuropeft.evaluate.predictions import Run

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Tested:
    """Predictions of one model, or of the models of all folds: one row per subject, sorted by subject.

    Attributes:
        subjects: names, [n].
        y: class indices or target values, [n].
        score: as `Run` has it, [n] or [n, classes].
        rule: as `metrics.measure` takes it, [n] or [n, classes].
    """

    subjects: tuple[str, ...]
    y: Array
    score: Array
    rule: Array


def with_rule(kind: str, validation: Run | None, tested: Run) -> Tested:
    """Return a test run with its decision rule: of two classes, a threshold that validation chose.

    It is NaN as long as there are no predictions on validation, and for regression, which has none.
    """
    n = len(tested.subjects)
    if kind == "multiclass":
        rule = np.tile(tested.prior, (n, 1))
    elif kind == "regression" or validation is None:
        rule = np.full(n, np.nan)
    else:
        rule = np.full(n, youden_threshold(validation.y, validation.score))
    return Tested(tested.subjects, tested.y, tested.score, rule)


def pool(folds: Sequence[Tested]) -> Tested:
    """Return the predictions of all folds as those of one run, each row with the rule of its own fold."""
    subjects = [subject for fold in folds for subject in fold.subjects]
    order = sorted(range(len(subjects)), key=subjects.__getitem__)
    return Tested(
        tuple(subjects[place] for place in order),
        np.concatenate([fold.y for fold in folds])[order],
        np.concatenate([fold.score for fold in folds])[order],
        np.concatenate([fold.rule for fold in folds])[order],
    )
