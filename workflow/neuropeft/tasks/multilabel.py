"""Several labels that may hold at the same time, each present, absent or unknown, such as findings."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuropeft.errors import UserError
from neuropeft.files import MISSING
from neuropeft.tasks.base import GUESS, Array, Metric, Objective, Row, TaskKind
from neuropeft.tasks.metrics import auc, average_precision, brier
from neuropeft.tasks.values import SEVERAL, Place, common_values, finite, is_missing

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.config import MultilabelTask


SUPPOSED = "?"  # ends a label that is uncertain, and is learnt as what stands before
NUMBERS = {"1": 1.0, "0": 0.0, MISSING: math.nan}
UNCERTAIN = {"ignore": MISSING, "zeros": f"0{SUPPOSED}", "ones": f"1{SUPPOSED}"}  # by policy
Weighted = Callable[[Array, Array, Array | None], Array]
OF_LABELS = (("auc", "AUC", auc), ("ap", "average precision", average_precision))


def _of_label(
    metric: Weighted, label: int, y: Array, score: Array, rule: Array, weights: Array | None
) -> Array:
    """Return a metric of a label over the subjects of whom it is known; NaN without any."""
    known = np.isfinite(y[:, label])
    weight = None if weights is None else weights[..., known]
    if not known.any():
        return np.full(() if weight is None else weight.shape[:-1], np.nan)
    return metric(y[known, label], score[known, label], weight)


def _mean(metric: Weighted, y: Array, score: Array, rule: Array, weights: Array | None) -> Array:
    """Return the mean of a metric over labels."""
    labels = range(y.shape[1])
    return np.mean([_of_label(metric, label, y, score, rule, weights) for label in labels], axis=0)


class Multilabel(TaskKind):
    """Independent labels. A target is text such as `1|0|n/a`, [n, labels] with NaN where it is unknown.

    As for two classes, presence and absence of a label count equally in its loss. An uncertain label that is
    learnt as present or absent is `1?` or `0?`, and unknown to scores.
    """

    metrics = (
        *(Metric(name, f"macro {title}", True, partial(_mean, value)) for name, title, value in OF_LABELS),
        Metric("brier", "Brier score", False, partial(_mean, brier)),
    )
    loss_label = "loss (cross-entropy)"
    stratum = "rarest label"

    def read(self, place: Place, task: "MultilabelTask", scans: "Sequence[Scan]") -> list[str | None]:
        """Return the labels of every scan, None where none is known."""
        return [self._read(place, task, scan) for scan in scans]

    def _read(self, place: Place, task: "MultilabelTask", scan: "Scan") -> str | None:
        labels = []
        for name, column in task.labels.items():
            text = scan.labels.get(column, "")
            value = finite(text)
            if value in (0, 1):
                labels.append(str(int(value)))
            elif value == -1:
                labels.append(UNCERTAIN[task.learnt(name)])
            elif is_missing(text):
                labels.append("0" if task.blank == "zeros" else MISSING)
            else:
                problem = f"{column!r} of scan {scan.scan_id} is {text!r}, which is neither 1 nor 0,"
                fix = "write 1, 0, -1 where it is uncertain, or n/a where it is unknown"
                raise place.error(f"labels.{name}", problem, fix)
        return SEVERAL.join(labels) if set(labels) != {MISSING} else None

    def check(
        self, place: Place, task: "MultilabelTask", rows: Sequence[Row], scans: "Sequence[Scan]"
    ) -> None:
        """Check that every label is present in some scan and absent from another, for certain."""
        y = self.truth(row["y"] for row in rows).reshape(-1, self.size)
        for (name, column), values in zip(task.labels.items(), y.T, strict=True):
            if not {0.0, 1.0} <= set(values):
                problem = f"{column!r} is not both 1 and 0 ({common_values(scans, column)})"
                raise place.error(f"labels.{name}", problem, f"leave the label out, or {place.without()}")

    def array(self, targets: Iterable[Any]) -> Array:
        """Return labels as numbers, [n, labels]; NaN where unknown."""
        rows = [target.replace(SUPPOSED, "").split(SEVERAL) for target in targets]
        return np.array([[NUMBERS[label] for label in row] for row in rows])

    def truth(self, targets: Iterable[Any]) -> Array:
        """Return labels as `array` does; NaN where they are uncertain, too."""
        rows = [target.split(SEVERAL) for target in targets]
        return np.array([[NUMBERS.get(label, math.nan) for label in row] for row in rows])

    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return the rarest label that each subject has; the number of labels if it has none."""
        y = self.array(targets.values())
        counts = np.nansum(y, axis=0)
        rarest = [min(np.flatnonzero(row == 1), key=lambda k: (counts[k], k), default=self.size) for row in y]
        return dict(zip(targets, map(int, rarest), strict=True))

    def nothing_to_learn(self, y: Array) -> bool:
        """Whether no label is both present and absent."""
        return not any({0.0, 1.0} <= set(values) for values in y.T)

    @property
    def outputs(self) -> int:
        """A logit per label."""
        return self.size

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return the sum over known labels of their binary cross-entropies, over the number of labels.

        A label that is not both present and absent in training is not learnt.
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self.nothing_to_learn(targets):
            raise UserError(f"{name}: no label is both 1 and 0 in training; give a larger subset")
        weight = np.asarray(weights)[:, None]
        present, absent = (np.nansum(weight * (targets == value), axis=0) for value in (1, 0))  # [labels]
        learnt = (present > 0) & (absent > 0)
        ratio = np.where(learnt, absent, 1) / np.where(learnt, present, 1)
        constants = torch.from_numpy(np.array([ratio, learnt])).float()

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            pos_weight, used = constants.to(outputs.device)  # [labels] each
            losses = binary_cross_entropy_with_logits(
                outputs, targets.nan_to_num(), pos_weight=pos_weight, reduction="none"
            )  # [B, labels]
            return (losses * used * targets.isfinite()).sum(dim=1) / self.size

        unlearnt = np.log((present + 0.5) / (absent + 0.5))  # finite without any
        return Objective(loss, tuple(np.where(learnt, -np.log(ratio), unlearnt).tolist()))

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return the probability of each label, [n, labels]."""
        return (outputs + outputs.new_tensor(list(offset))).sigmoid()

    @property
    def score_columns(self) -> list[str]:
        """A probability per label."""
        return [f"score_{label}" for label in range(self.size)]

    @property
    def parts(self) -> tuple[Metric, ...]:  # type: ignore[override]
        """AUC and average precision of each label, by its number."""
        return tuple(
            Metric(f"{name}_{label}", title, True, partial(_of_label, value, label), part=label)
            for label in range(self.size)
            for name, title, value in OF_LABELS
        )

    def measure(self, y: Array, score: Array, rule: Array, weights: Array | None = None) -> dict[str, Array]:
        """Return all metrics; the means over labels are those of the labels' own, which are slow to draw."""
        if not np.isfinite(score).all():
            return super().measure(y, score, rule, weights)
        *of_labels, rest = self.metrics
        found = {one.name: one.value(y, score, rule, weights) for one in (*self.parts, rest)}
        for metric in of_labels:
            values = [found[f"{metric.name}_{label}"] for label in range(self.size)]
            found[metric.name] = np.mean(values, axis=0)
        return found

    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why some metric is NaN: a label is not both present and absent."""
        if not np.isfinite(score).all():
            return "predictions are not finite"
        both = sum({0.0, 1.0} <= set(values) for values in y.T)
        return f"{both} of {self.size} labels are both 1 and 0" if both < self.size else ""

    def separate(self, y: Array) -> Iterator[tuple[NDArray[np.bool_], Array]]:
        """Yield the rows of which each label is known, and its values there."""
        for values in y.T:
            known = np.isfinite(values)
            yield known, values[known]

    def constant_scores(self, y: Array) -> Array:
        """Return the frequency of each label, [labels]."""
        return np.array([target.mean() if len(target) else GUESS for _, target in self.separate(y)])

    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Return the probabilities [n, labels] of a classifier per label."""
        columns = [
            np.full(len(features), model) if isinstance(model, float) else model.predict_proba(features)[:, 1]
            for model in models
        ]
        return np.stack(columns, axis=1)
