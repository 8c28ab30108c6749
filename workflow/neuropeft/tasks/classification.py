"""Telling classes apart: two, or more that exclude one another."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuropeft.errors import UserError
from neuropeft.tasks.base import Array, Metric, Objective, Row, Run, TaskKind
from neuropeft.tasks.metrics import auc, balanced_accuracy, brier, macro_auc, youden_threshold
from neuropeft.tasks.values import Place, common_values, comparable, is_missing

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.config import BinaryTask, MulticlassTask

SUBJECTS = 3  # of each class, one for each side of a split


class _Classes(TaskKind):
    """What two and more classes share. Targets are indices of classes, in the order of the configuration.

    Classes count equally however many scans they have: their losses are weighted by the inverse of their
    frequency. The weighted classes have equal shares, so the best constant outputs are zero: heads start
    there.
    """

    loss_label = "loss (cross-entropy)"
    every_stratum = True

    def read(
        self, place: Place, task: "BinaryTask | MulticlassTask", scans: "Sequence[Scan]"
    ) -> list[int | None]:
        """Return the class of every scan, None where its value belongs to no class."""
        index: dict[str | float, int] = {}
        for number, (name, values) in enumerate(task.class_values().items()):
            for value in values:
                if index.setdefault(comparable(task.target, value), number) != number:
                    raise UserError(
                        f"`tasks.{place.task}.classes.{name}`: the value {value!r} belongs to another class "
                        "too; give every class its own values"
                    )
        return [index.get(comparable(task.target, scan.labels.get(task.target, ""))) for scan in scans]

    def check(
        self, place: Place, task: "BinaryTask | MulticlassTask", rows: Sequence[Row], scans: "Sequence[Scan]"
    ) -> None:
        """Check that every class has scans, and enough subjects to be split; say what belongs to none."""
        from neuropeft.cohorts.splits import first_rows

        counts = Counter(row["y"] for row in first_rows(rows).values())
        present = {row["y"] for row in rows}
        for number, (name, values) in enumerate(task.class_values().items()):
            key = f"classes.{name}"
            if number not in present:
                wanted = " or ".join(repr(value) for value in values)
                seen = f"{task.target} has {common_values(scans, task.target)}"
                fix = f"name a value that occurs ({seen}), or {place.without()}"
                raise place.error(key, f"no scan has {task.target} {wanted}", fix)
            if place.trains and counts[number] < SUBJECTS:
                problem = f"only {counts[number]} subjects are {name} at their first scan"
                fix = f"a split needs {SUBJECTS} of each class: add subjects, relax `where` or merge classes"
                raise place.error(key, problem, fix)
        used = {row["scan_id"] for row in rows}
        others = [scan for scan in scans if scan.scan_id not in used]
        # Some are meant to be left out, some are misspelt.
        if others := [scan for scan in others if not is_missing(scan.labels.get(task.target, ""))]:
            print(
                f"task {place.task}: {len(others)} scans of cohort {place.cohort} belong to none of its "
                f"classes and are left out: {task.target} is {common_values(others, task.target)}"
            )

    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return the class of each subject."""
        return {subject: int(target) for subject, target in targets.items()}

    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why some metric is NaN: a class is absent."""
        if not np.isfinite(score).all():
            return "predictions are not finite"
        present = len(np.unique(y))
        return f"{present} of {self.size} classes among the subjects" if present < self.size else ""

    def frequencies(self, targets: Array, weights: Sequence[float], name: str) -> Array:
        """Return the weighted frequency of each class in training, [classes]."""
        counts = np.bincount(targets.astype(int), weights=np.asarray(weights), minlength=self.size)
        if absent := np.flatnonzero(counts == 0).tolist():
            raise UserError(
                f"{name}: no training scan has class {absent[0]} in this subset; give a larger one, "
                "or more subjects of that class"
            )
        return counts / counts.sum()

    def constant_scores(self, y: Array) -> Array:
        """Return the class frequencies, [columns]."""
        return self._columns(np.bincount(y.astype(int), minlength=self.size)[None] / len(y))[0]

    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Return the probabilities [n, columns] of one fitted classifier."""
        (model,) = models
        probabilities = np.zeros((len(features), self.size))
        if isinstance(model, float):
            probabilities[:, int(model)] = 1
        else:
            probabilities[:, model.classes_.astype(int)] = model.predict_proba(features)
        return self._columns(probabilities)

    def _columns(self, probabilities: Array) -> Array:
        """Return what is stored of probabilities [n, classes]."""
        return probabilities


def _balanced(y: Array, predicted: NDArray[Any], classes: int, rule: Array, weights: Array | None) -> Array:
    """Return the balanced accuracy [...], NaN as long as there is no rule to predict classes by."""
    value = balanced_accuracy(y, predicted, classes, weights)
    return value if np.isfinite(rule).all() else value * np.nan


class Binary(_Classes):
    """Two classes; the second one of the configuration is the positive one, whose probability is the score.

    The rule is the score from which it is predicted, chosen on validation.
    """

    metrics = (
        Metric("auc", "AUC", True, lambda y, score, rule, weights: auc(y, score, weights)),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            True,
            lambda y, score, rule, weights: _balanced(y, score >= rule, 2, rule, weights),
        ),
        Metric("brier", "Brier score", False, lambda y, score, rule, weights: brier(y, score, weights)),
    )
    validation_chooses = "the threshold"

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return the binary cross-entropy with pos_weight = negatives / positives."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        negative, positive = self.frequencies(targets, weights, name).tolist()
        pos_weight = negative / positive

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            weight = torch.full((), pos_weight, device=outputs.device)
            return binary_cross_entropy_with_logits(
                outputs[:, 0], targets, pos_weight=weight, reduction="none"
            )

        return Objective(loss, (-math.log(pos_weight),))

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return the probability of class 1, [n, 1]."""
        return (outputs + offset[0]).sigmoid()

    def rule(self, validation: Run | None, tested: Run) -> Array:
        """Return the threshold that is best on validation (Youden 1950), [n]."""
        chosen = youden_threshold(validation.y, validation.score) if validation else np.nan
        return np.full(len(tested.subjects), chosen)

    def _columns(self, probabilities: Array) -> Array:
        return probabilities[:, 1:2]


class Multiclass(_Classes):
    """Three or more classes.

    The rule is how frequent the scores take each class to be, [n, classes]; predicted is the class whose
    score exceeds that most, since balanced accuracy counts rare classes as much as others.
    """

    metrics = (
        Metric(
            "auc",
            "macro AUC (one against all)",
            True,
            lambda y, score, rule, weights: macro_auc(y, score, weights),
        ),
        Metric(
            "balanced_accuracy",
            "balanced accuracy",
            True,
            lambda y, score, rule, weights: _balanced(
                y, (score / rule).argmax(1), score.shape[1], rule, weights
            ),
        ),
        Metric("brier", "Brier score", False, lambda y, score, rule, weights: brier(y, score, weights)),
    )

    @property
    def outputs(self) -> int:
        """A logit per class."""
        return self.size

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return the cross-entropy, weighted by the inverse of the classes' frequencies."""
        from torch.nn.functional import cross_entropy

        frequencies = self.frequencies(targets, weights, name)
        of_class = (1 / (self.size * frequencies)).tolist()

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            classes = targets.long()
            losses = cross_entropy(outputs, classes, reduction="none")
            # Numbers and no tensor of weights, whose way to the GPU would make each step wait.
            return losses * sum(weight * (classes == index) for index, weight in enumerate(of_class))

        return Objective(loss, tuple(np.log(frequencies).tolist()))

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return the probability of each class, [n, classes]."""
        return (outputs + outputs.new_tensor(list(offset))).softmax(dim=1)

    @property
    def score_columns(self) -> list[str]:
        """A probability per class."""
        return [f"score_{k}" for k in range(self.size)]

    @property
    def prior_columns(self) -> list[str]:
        """The frequency of each class in a run's training."""
        return [f"prior_{k}" for k in range(self.size)]

    def prior(self, offset: Sequence[float]) -> list[float]:
        """Return the frequency of each class, of which the offset holds the logarithm."""
        return [math.exp(value) for value in offset]

    def rule(self, validation: Run | None, tested: Run) -> Array:
        """Return the frequencies that the scores suppose, [n, classes]."""
        return np.tile(tested.prior, (len(tested.subjects), 1))
