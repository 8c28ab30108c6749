"""What a task minimises, and how its outputs are read: an objective for each kind of task."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropeft.errors import UserError


@dataclass(frozen=True)
class Objective:
    """How a task is learnt.

    Attributes:
        loss: Loss [B] of each scan: of outputs [B, outputs] against targets [B].
        metric: What a person wants to watch: AUC, balanced accuracy, or the mean absolute error in the
            target's unit.
        offset: What turns outputs into what is reported, one per output: the median of a regression target,
            which is the best constant for its loss, or what the loss weighs away of the classes, the log-odds
            of class 1 or, of more classes, the logarithms of their frequencies.
        scale: SD of a regression target; 1 otherwise. Reported are outputs * scale + offset.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], float]
    offset: tuple[float, ...]
    scale: float = 1.0


ROUNDING = 1e-9  # shares that add up to a half, and not to a little less


def outputs_of(task: Mapping[str, Any]) -> int:
    """Return the width of the head of a task: one logit or value, or a logit per class."""
    return int(task["classes"]) if task["kind"] == "multiclass" else 1


def objective(
    task: Mapping[str, Any], targets: Sequence[float], weights: Sequence[float], name: str
) -> Objective:
    """Return the objective of a task, with what is learnt from its training targets alone.

    Classes count equally however many scans they have: their losses are weighted by the inverse of their
    frequency (for two classes as pos_weight = negatives / positives). The weighted classes have equal
    shares, so their log-odds, the best constant output, are zero: the head starts there.

    Args:
        task: `{"name": ..., "kind": "binary" | "multiclass" | "regression", "classes": int}`.
        targets: Targets of the training scans.
        weights: How much each of them counts, see `labels.subject_weights`.
        name: The cell, for errors.

    Raises:
        UserError: A class has no training scan, or all values of a regression target are equal.
    """
    values = torch.tensor(list(targets), dtype=torch.float64)
    weight = torch.tensor(list(weights), dtype=torch.float64)
    if task["kind"] == "regression":
        return _regression(values, weight, name)
    counts = _class_counts(task, values, weight, name)
    if task["kind"] == "binary":
        return _binary(float(counts[0] / counts[1]))
    return _multiclass(counts / counts.sum())


def scores(task: Mapping[str, Any], outputs: Tensor, offset: Sequence[float], scale: float) -> Tensor:
    """Return probabilities, or values in the target's unit, [n, 1] or [n, classes] as `outputs`.

    Probabilities are those of a population with the training set's class frequencies.
    """
    values = outputs * scale + torch.tensor(list(offset))
    if task["kind"] == "regression":
        return values
    return values.sigmoid() if task["kind"] == "binary" else values.softmax(dim=1)


def _regression(values: Tensor, weight: Tensor, name: str) -> Objective:
    share = weight / weight.sum()
    sd = float(((values - (share * values).sum()).square() * share).sum().sqrt())
    order = values.argsort()
    median = float(values[order][share[order].cumsum(0) >= 0.5 - ROUNDING][0])
    if sd == 0:
        raise UserError(
            f"{name}: all training targets are {median:g}; nothing can be learnt, give a larger fraction"
        )

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - (targets - median) / sd).abs()

    def metric(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[:, 0] * sd + median - targets).abs().mean())

    return Objective(loss, metric, (median,), sd)


def _binary(pos_weight: float) -> Objective:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        weight = torch.full((), pos_weight, device=outputs.device)
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, pos_weight=weight, reduction="none")

    return Objective(loss, lambda outputs, targets: auc(outputs[:, 0], targets), (-math.log(pos_weight),))


def _multiclass(frequencies: Tensor) -> Objective:
    weights = (1 / (len(frequencies) * frequencies)).tolist()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        classes = targets.long()
        losses = F.cross_entropy(outputs, classes, reduction="none")
        # Numbers and no tensor of weights, whose way to the GPU would make each step wait.
        return losses * sum(weight * (classes == index) for index, weight in enumerate(weights))

    return Objective(loss, balanced_accuracy, tuple(frequencies.log().tolist()))


def auc(outputs: Tensor, targets: Tensor) -> float:
    """Return the area under the ROC curve, ties counted half; NaN if a class is absent."""
    positive, negative = outputs[targets == 1], outputs[targets == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean over the classes that occur of the share recognised."""
    correct = (outputs.argmax(dim=1) == targets).double()
    return float(torch.stack([correct[targets == value].mean() for value in targets.unique()]).mean())


def _class_counts(task: Mapping[str, Any], values: Tensor, weight: Tensor, name: str) -> Tensor:
    counts = torch.bincount(values.long(), weights=weight, minlength=int(task["classes"]))
    absent = [index for index, number in enumerate(counts.tolist()) if number == 0]
    if absent:
        raise UserError(
            f"{name}: no training scan has class {absent[0]} of task {task['name']!r} at this fraction; "
            "give a larger fraction, or more subjects of that class"
        )
    return counts
