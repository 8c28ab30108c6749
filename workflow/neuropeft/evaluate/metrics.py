"""Metrics of predictions, and their intervals over subjects.

Every metric takes one row per subject and optional `weights` [..., n]: how often each subject counts.
Bootstrap resamples are such weights, so one implementation serves the point value and its 2,000 draws.
A metric that is not defined (one class only, constant predictions) is NaN; `why_undefined` says why.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

METRICS = {
    "binary": ("auc", "balanced_accuracy", "brier"),
    "multiclass": ("auc", "balanced_accuracy", "brier"),
    "regression": ("mae", "r"),
}
HIGHER_IS_BETTER = {"auc": True, "balanced_accuracy": True, "brier": False, "mae": False, "r": True}
FALLBACK_THRESHOLD = 0.5
DRAWS = 2000
RESAMPLED_AT_ONCE = 2_000_000  # weights: some ten arrays of so many numbers are in memory at a time


def auc(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties half.

    Args:
        y: [n] of 0 and 1.
        score: [n], higher means class 1.
        weights: [..., n] or None for ones.

    Returns:
        [...]; NaN where only one class has weight.
    """
    order = np.argsort(score, kind="stable")
    ranked, truth = score[order], y[order]
    weight = _weights(weights, len(y))[..., order]
    starts = np.flatnonzero(np.r_[True, np.diff(ranked) != 0])  # first position of each distinct score
    positive = np.add.reduceat(weight * truth, starts, axis=-1)  # [..., distinct scores]
    negative = np.add.reduceat(weight * (1 - truth), starts, axis=-1)
    below = np.cumsum(negative, axis=-1) - negative
    wins = (positive * (below + negative / 2)).sum(-1)
    return _divide(wins, positive.sum(-1) * negative.sum(-1))


def macro_auc(y: Array, scores: Array, weights: Array | None = None) -> Array:
    """Mean over classes of the AUC of that class against all others; `scores` is [n, classes]."""
    of_class = [auc((y == k).astype(float), scores[:, k], weights) for k in range(scores.shape[1])]
    return np.mean(of_class, axis=0)


def youden_threshold(y: Array, score: Array) -> float:
    """Threshold that maximises sensitivity + specificity - 1 (Youden 1950), to be chosen on validation.

    It lies midway between two neighbouring scores; among equally good ones it is the nearest to 0.5. With
    one class only there is nothing to choose, and it is 0.5.
    """
    distinct = np.unique(score)
    cuts = (distinct[1:] + distinct[:-1]) / 2
    if len(np.unique(y)) < 2 or not len(cuts):
        return FALLBACK_THRESHOLD
    above = score[:, None] >= cuts  # [n, cuts]
    youden = above[y == 1].mean(0) - above[y == 0].mean(0)
    best = cuts[np.isclose(youden, youden.max())]
    return float(best[np.argmin(np.abs(best - FALLBACK_THRESHOLD))])


def balanced_accuracy(y: Array, predicted: Array, classes: int, weights: Array | None = None) -> Array:
    """Mean over `classes` of the share of a class's subjects predicted as it; NaN if a class is absent."""
    weight = _weights(weights, len(y))
    right = (predicted == y).astype(float)
    recalls = [
        _divide((weight * right * (y == k)).sum(-1), (weight * (y == k)).sum(-1)) for k in range(classes)
    ]
    return np.mean(recalls, axis=0)


def brier(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Mean squared error of probabilities (Brier 1950): 0 to 1 for [n] scores, 0 to 2 for [n, classes]."""
    if score.ndim == 1:
        errors = (score - y) ** 2
    else:
        errors = ((score - (y[:, None] == np.arange(score.shape[1]))) ** 2).sum(1)
    return _mean(errors, weights)


def mean_absolute_error(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Mean absolute error, in the unit of the target."""
    return _mean(np.abs(score - y), weights)


def pearson_r(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Pearson correlation; NaN where either side is constant."""
    weight = _weights(weights, len(y))
    weight = weight / weight.sum(-1, keepdims=True)
    dy = y - (weight * y).sum(-1, keepdims=True)
    ds = score - (weight * score).sum(-1, keepdims=True)
    variance_y, variance_s = (weight * dy**2).sum(-1), (weight * ds**2).sum(-1)
    # Rounding leaves a constant with a variance of about 1e-32 of its square, not of exactly 0.
    constant = (variance_y <= 1e-20 * np.mean(y**2)) | (variance_s <= 1e-20 * np.mean(score**2))
    return _divide((weight * dy * ds).sum(-1), np.where(constant, 0, np.sqrt(variance_y * variance_s)))


def measure(kind: str, y: Array, score: Array, rule: Array, weights: Array | None = None) -> dict[str, Array]:
    """All metrics of a kind of task.

    Args:
        kind: binary, multiclass or regression.
        y: [n] class indices or target values, one row per subject.
        score: [n] (binary: probability of class 1; regression: value) or [n, classes].
        rule: binary: score from which class 1 is predicted, chosen on validation, one or [n]; as long as one
            is NaN, balanced accuracy is, too. Multiclass: how frequent the scores take each class to be,
            [classes] or [n, classes]; predicted is the class whose score exceeds that most, since balanced
            accuracy counts rare classes as much as others. Regression has none.
        weights: [..., n] or None for ones.

    Returns:
        Metric name to [...], in the order of `METRICS[kind]`.
    """
    if not np.isfinite(score).all():
        shape = () if weights is None else weights.shape[:-1]
        return {name: np.full(shape, np.nan) for name in METRICS[kind]}
    if kind == "regression":
        return {"mae": mean_absolute_error(y, score, weights), "r": pearson_r(y, score, weights)}
    if kind == "multiclass":
        area, predicted, classes = macro_auc(y, score, weights), (score / rule).argmax(1), score.shape[1]
    else:
        area, predicted, classes = auc(y, score, weights), (score >= rule).astype(int), 2
    known = np.isfinite(rule).all()
    return {
        "auc": area,
        "balanced_accuracy": balanced_accuracy(y, predicted, classes, weights) if known else area * np.nan,
        "brier": brier(y, score, weights),
    }


def why_undefined(kind: str, y: Array, score: Array) -> str:
    """Why some metric of these predictions is NaN, or an empty string if none need be."""
    if not np.isfinite(score).all():
        return "predictions are not finite"
    if kind == "regression":
        if np.ptp(score) == 0:
            return "predictions are constant"
        return "targets are constant" if np.ptp(y) == 0 else ""
    classes = 2 if score.ndim == 1 else score.shape[1]
    present = len(np.unique(y))
    return f"{present} of {classes} classes among the subjects" if present < classes else ""


def resamples(n: int, draws: int = DRAWS, seed: int = 0, at_once: int = RESAMPLED_AT_ONCE) -> Iterator[Array]:
    """Yield bootstrap weights [some draws, n]: how often each of `n` subjects is drawn when drawing n.

    The same n and seed give the same draws, whatever the size of the pieces: methods tested on the same
    subjects are compared in pairs.

    Args:
        n: number of subjects.
        draws: number of resamples, of all pieces together.
        seed: seed of the resampling.
        at_once: most weights of a piece, which has one draw at least.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, at_once // n)
    for first in range(0, draws, rows):
        size = min(rows, draws - first)
        flat = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(flat.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def percentile_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws; draws without a value (one class drawn) are left out."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_draws(
    kind: str, runs: Sequence[tuple[Array, Array, Array]], draws: int = DRAWS, seed: int = 0
) -> dict[str, Array]:
    """Draws of the mean of each metric over runs, under resampling of subjects.

    Args:
        kind: binary, multiclass or regression.
        runs: (y [n], score [n] or [n, classes], decision rule) of each run, subjects in the same order.
        draws: number of resamples; each resample takes the same subjects for all runs.
        seed: seed of the resampling.

    Returns:
        Metric name to [draws]; give it to `percentile_interval`.
    """
    pieces: dict[str, list[Array]] = {name: [] for name in METRICS[kind]}
    for weights in resamples(len(runs[0][0]), draws, seed):
        measured = [measure(kind, y, score, rule, weights) for y, score, rule in runs]
        for name, drawn in pieces.items():
            drawn.append(np.mean([values[name] for values in measured], axis=0))
    return {name: np.concatenate(drawn) for name, drawn in pieces.items()}


def _weights(weights: Array | None, n: int) -> Array:
    return np.ones(n) if weights is None else weights


def _mean(values: Array, weights: Array | None) -> Array:
    weight = _weights(weights, len(values))
    return (weight * values).sum(-1) / weight.sum(-1)


def _divide(numerator: Array, denominator: Array) -> Array:
    shape = np.shape(numerator)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.asarray(denominator) > 0)
