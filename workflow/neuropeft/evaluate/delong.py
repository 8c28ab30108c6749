"""The variance of AUCs by DeLong et al. 1988, with the fast midranks of Sun & Xu 2014, and intervals.

An AUC that is the mean over seeds is a mean of correlated AUCs. The scores themselves are not averaged: that
would be an ensemble, whose AUC is higher than what is reported.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from neuropeft.tasks.base import Array

Z = float(norm.ppf(0.975))


def placements(y: Array, scores: Sequence[Array]) -> tuple[Array, Array]:
    """Return how many subjects of the other class each subject is on the right side of, as shares, ties half.

    Args:
        y: 0 or 1, [n].
        scores: one [n] for each of k models.

    Returns:
        Of the positive subjects [k, positives] and of the negative ones [k, negatives]; their means are the
        AUCs.
    """
    positive = y == 1
    score = np.array(scores)
    ranks = rankdata(score, axis=1)
    above, below = score[:, positive], score[:, ~positive]
    of_positive = (ranks[:, positive] - rankdata(above, axis=1)) / below.shape[1]
    of_negative = 1 - (ranks[:, ~positive] - rankdata(below, axis=1)) / above.shape[1]
    return of_positive, of_negative


def covariance(y: Array, scores: Sequence[Array]) -> Array:
    """Return the covariance of the AUCs of k models on the same subjects, two of each class, [k, k]."""
    return sum(np.atleast_2d(np.cov(of_class)) / of_class.shape[1] for of_class in placements(y, scores))


def auc_interval(y: Array, scores: Sequence[Array]) -> tuple[float, float]:
    """Return the 95 % interval over subjects of the mean AUC of models; NaN without two of each class.

    It is symmetric in log-odds, so that it stays within 0 and 1. Where the AUC is 0 or 1, and DeLong's
    variance 0, it is what the variance of Hanley & McNeil 1982 allows (Newcombe 2006).
    """
    positives, negatives = int((y == 1).sum()), int((y == 0).sum())
    if min(positives, negatives) < 2:
        return float("nan"), float("nan")
    auc = float(placements(y, scores)[0].mean())
    error = float(np.sqrt(covariance(y, scores).mean()))  # of a mean: the mean of all covariances
    if auc in (0.0, 1.0) or error == 0:
        ends = _boundary(max(auc, 1 - auc), positives, negatives)
        return ends if auc >= 0.5 else (1 - ends[1], 1 - ends[0])
    middle, half = logit(auc), Z * error / (auc * (1 - auc))
    return float(expit(middle - half)), float(expit(middle + half))


def _boundary(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """Return the AUCs of which an observed one of at least .5 is 1.96 standard errors away, or 1."""
    more = (positives + negatives) / 2 - 1

    def beyond(true: float) -> float:
        spread = 1 + more * (1 - true) / (2 - true) + more * true / (1 + true)
        return abs(auc - true) - Z * np.sqrt(true * (1 - true) * spread / (positives * negatives))

    low = brentq(beyond, 1e-9, auc - 1e-9)
    return float(low), 1.0 if beyond(1 - 1e-9) < 0 or auc == 1 else float(
        brentq(beyond, auc + 1e-9, 1 - 1e-9)
    )
