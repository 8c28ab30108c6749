"""Metrics in thousands of draws at once, as matrix products; those of `tasks.metrics`, several times as fast.

They are kept out of the tasks' modules, which trainings depend on: no cell is trained again for a faster
table.
"""

from collections.abc import Callable, Sequence

import numpy as np

from neuropeft.tasks.base import Array
from neuropeft.tasks.classification import Binary
from neuropeft.tasks.metrics import auc
from neuropeft.tasks.regression import Regression

MOST_PAIRS = 1_000_000  # of a matrix; sorting needs less memory for more, and less time
Runs = Sequence[tuple[Array, Array, Array]]  # y [n], score [n], rule [n]; all of the same subjects
Draws = Callable[[Runs, Array], Array]  # runs, weights [draws, n] -> [runs, draws]


def auc_draws(runs: Runs, weights: Array) -> Array:
    """Return the AUCs: the weighted share of (positive, negative) pairs in the right order, ties half."""
    positive = runs[0][0] == 1
    if positive.sum() * (~positive).sum() > MOST_PAIRS:
        return np.array([auc(y, score, weights) for y, score, _ in runs])
    of_positive, of_negative = (weights[:, side].astype(np.float32) for side in (positive, ~positive))
    pairs = of_positive.sum(1, dtype=float) * of_negative.sum(1, dtype=float)
    found = []
    for _, score, _ in runs:
        apart = score[positive][:, None] - score[~positive]
        right = (np.sign(apart) + 1).astype(np.float32) / 2
        found.append(_share(np.einsum("dn,dn->d", of_positive @ right, of_negative), pairs))
    return np.array(found)


def balanced_accuracy_draws(runs: Runs, weights: Array) -> Array:
    """Return the mean of the two classes' shares of subjects on the right side of the threshold."""
    y = runs[0][0]
    right = np.array([(score >= rule) == y for _, score, rule in runs], float)
    recalls = [_share(weights @ (right * (y == k)).T, (weights @ (y == k))[:, None]).T for k in (0, 1)]
    known = np.array([np.isfinite(rule).all() for *_, rule in runs])
    return np.where(known[:, None], np.mean(recalls, axis=0), np.nan)


def pearson_draws(runs: Runs, weights: Array) -> Array:
    """Return the correlations, from weighted moments about the unweighted means."""
    weight = weights / weights.sum(1, keepdims=True)
    y = runs[0][0] - runs[0][0].mean()
    of_y, of_yy = weight @ y, weight @ y**2
    found = []
    for given, score, _ in runs:
        s = score - score.mean()
        of_s, of_ss, of_sy = (weight @ np.stack([s, s**2, s * y], axis=1)).T
        variances = of_yy - of_y**2, of_ss - of_s**2
        sizes = np.mean(given**2), np.mean(score**2)
        varies = [one > 1e-20 * size for one, size in zip(variances, sizes, strict=True)]
        whole = np.where(varies[0] & varies[1], variances[0] * variances[1], 0)
        found.append(_share(of_sy - of_s * of_y, np.sqrt(np.maximum(whole, 0))))
    return np.array(found)


def _mean_of(value: Callable[[Array, Array], Array]) -> Draws:
    """Return the draws of a metric that is the mean of a value (y, score) of each subject."""

    def draws(runs: Runs, weights: Array) -> Array:
        values = np.array([value(y, score) for y, score, _ in runs])
        return (weights @ values.T / weights.sum(1, keepdims=True)).T

    return draws


def _share(part: Array, whole: Array) -> Array:
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


_BY_NAME: dict[str, Draws] = {
    "auc": auc_draws,
    "balanced_accuracy": balanced_accuracy_draws,
    "brier": _mean_of(lambda y, score: (score - y) ** 2),
    "r": pearson_draws,
    "mae": _mean_of(lambda y, score: np.abs(score - y)),
}
# By the metric itself: a kind of task that has another one of the same name does not meet these.
FAST = {
    metric: _BY_NAME[metric.name]
    for kind in (Binary, Regression)
    for metric in kind.metrics
    if metric.name in _BY_NAME
}
