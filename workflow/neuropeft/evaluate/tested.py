"""What is scored at once: test predictions, each row with the rule that its model predicts classes by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuropeft.tasks.base import Array, Run, TaskKind


@dataclass(frozen=True)
class Tested:
    """Predictions of one model, or of the models of all folds: one row per subject, sorted by subject."""

    subjects: tuple[str, ...]  # names, [n]
    y: Array  # as `Run` has it, [n, ...]
    score: Array  # as `Run` has it, [n] or [n, columns]
    rule: Array  # as `TaskKind.rule` gives it, [n, ...]


def with_rule(kind: TaskKind, validation: Run | None, tested: Run) -> Tested:
    """Return a test run with its decision rule, which validation may choose."""
    return Tested(tested.subjects, tested.y, tested.score, kind.rule(validation, tested))


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
