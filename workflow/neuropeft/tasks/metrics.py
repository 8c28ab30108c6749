"""What metrics compute.

Every metric takes one row per subject and optional `weights` [..., n]: how often each subject counts.
Bootstrap resamples are such weights, so one implementation serves the point value and its 2,000 draws.
A metric that is not defined (one class only, constant predictions) is NaN.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

FALLBACK_THRESHOLD = 0.5


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


def average_precision(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Average precision: the mean, over subjects of class 1, of the precision among those scored as high.

    Arguments and result are as in `auc`; equal scores are taken together, and nothing is interpolated. NaN
    where no subject of class 1 has weight.
    """
    order = np.argsort(-score, kind="stable")
    ranked, truth = score[order], y[order]
    weight = _weights(weights, len(y))[..., order]
    starts = np.flatnonzero(np.r_[True, np.diff(ranked) != 0])
    positive = np.add.reduceat(weight * truth, starts, axis=-1)  # [..., distinct scores]
    everyone = np.cumsum(np.add.reduceat(weight, starts, axis=-1), axis=-1)
    precision = np.nan_to_num(_divide(np.cumsum(positive, axis=-1), everyone))
    return _divide((positive * precision).sum(-1), positive.sum(-1))


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
    return weighted_mean(errors, weights)


def mean_absolute_error(y: Array, score: Array, weights: Array | None = None) -> Array:
    """Mean absolute error, in the unit of the target."""
    return weighted_mean(np.abs(score - y), weights)


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


def _weights(weights: Array | None, n: int) -> Array:
    return np.ones(n) if weights is None else weights


def weighted_mean(values: Array, weights: Array | None) -> Array:
    """Return the weighted mean [...] of values [n]."""
    weight = _weights(weights, len(values))
    return (weight * values).sum(-1) / weight.sum(-1)


def _divide(numerator: Array, denominator: Array) -> Array:
    shape = np.shape(numerator)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.asarray(denominator) > 0)
