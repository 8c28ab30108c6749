"""Learning curves: a power law of the error on the number of labelled scans, and what follows from it.

error = exp(intercept) * scans ** -exponent is a line in logarithms, fitted by weighted least squares. Subsets
are tested on the same subjects, so their errors go up and down together; the bootstrap draws, which are
paired, know how much. Training anew moves each subset by itself, by the SD over seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import ALPHA
from neuropeft.evaluate.scores import Score
from neuropeft.tasks.base import Array

FEWEST = 3  # subsets: two lie on a line whatever they are
REACH = 4.0  # times the most scans that were tried: beyond, a fit says nothing
LEAST = 1e-6  # what an error is at least, since its logarithm is taken

FEW_SUBSETS = f"fewer than {FEWEST} subsets"
FLAT = "the error is not shown to fall with more scans"
NO_LAW = "the subsets do not follow a power law"
BEYOND = f"beyond {REACH:g} times the scans that were tried"


@dataclass(frozen=True)
class Curve:
    """A method's error on its task's own test subjects, by the number of labelled scans."""

    scores: Sequence[Score]  # one per subset, the smallest first
    scans: Array  # labelled training scans, [subsets]
    log_errors: Array  # logarithms of the errors, [subsets]
    log_draws: Array  # the same in draws of subjects and of seeds, [subsets, draws]
    coefficients: Array  # intercept and exponent of the fit; NaN for too few subsets
    drawn: Array  # the same for each draw, [2, draws]
    p_misfit: float  # how likely it is to lie as far from a power law by chance
    reason: str  # why the fit supports no answer; empty if it does


def error(value: Array | float, higher_is_better: bool) -> Array:
    """Return the error of scores: 1 minus those of which more is better, such as an AUC."""
    return np.maximum(1 - np.asarray(value) if higher_is_better else np.asarray(value), LEAST)


def fit(scores: Sequence[Score], scans: Sequence[float], seed: int = 0) -> Curve:
    """Fit a power law to complete scores of one method with draws, one score per subset.

    `scores` come by subset, the smallest first, and `scans` says how many labelled scans each had.
    """
    better = scores[0].higher_is_better
    log_errors = np.log(np.array([error(one.mean, better) for one in scores]))
    drawn = np.log(error(np.array([one.draws for one in scores], float), better))
    drawn = np.where(np.isfinite(drawn), drawn, log_errors[:, None])
    deviation, freedom = _seed_error(scores, np.exp(log_errors))
    drawn = drawn + deviation * np.random.default_rng(seed).standard_t(freedom, drawn.shape)
    covariance = np.atleast_2d(np.cov(drawn))
    nothing = np.full((2, drawn.shape[1]), np.nan)
    if len(scores) < FEWEST:
        return Curve(
            scores, np.array(scans), log_errors, drawn, nothing[:, 0], nothing, math.nan, FEW_SUBSETS
        )
    design = np.stack([np.ones(len(scans)), -np.log(scans)], axis=1)
    weighted = design.T / np.maximum(np.diag(covariance), LEAST**2)  # [2, subsets]
    solve = np.linalg.solve(weighted @ design, weighted)
    coefficients, of_draws = solve @ log_errors, solve @ drawn
    left = np.eye(len(scans)) - design @ solve
    residual = left @ log_errors
    misfit = residual @ np.linalg.pinv(left @ covariance @ left.T, rcond=1e-9, hermitian=True) @ residual
    p = float(chi2.sf(misfit, len(scans) - 2))
    reason = FLAT if not percentile_interval(of_draws[1])[0] > 0 else NO_LAW if p < ALPHA else ""
    return Curve(scores, np.array(scans), log_errors, drawn, coefficients, of_draws, p, reason)


def _seed_error(scores: Sequence[Score], errors: Array) -> tuple[float, int]:
    """Return the standard error of a mean over seeds as a share of the error, and its degrees of freedom.

    It is pooled over subsets, since few seeds tell it badly; 0 where all have one seed and it is unknown.
    """
    several = [(one, value) for one, value in zip(scores, errors, strict=True) if len(one.values) > 1]
    if not several:
        return 0.0, 1
    variances = [(one.sd / value) ** 2 / len(one.values) for one, value in several]
    return math.sqrt(float(np.mean(variances))), sum(len(one.values) - 1 for one, _ in several)


def doubled(curve: Curve) -> tuple[float, float, float]:
    """Return by how much the error falls from the most scans to twice as many, with a 95 % interval."""
    last = math.log(curve.scans[-1])

    def gain(coefficients: Array) -> Array:
        intercept, exponent = coefficients
        return np.exp(intercept - exponent * last) * (1 - 2.0**-exponent)

    return float(gain(curve.coefficients)), *percentile_interval(gain(curve.drawn))


def scans_to_match(reference: Curve, curve: Curve, place: int) -> tuple[float, float, float, str]:
    """Return how many scans the reference needs to be as good as a method is with one of its subsets.

    Args:
        reference: the curve of the reference, whose fit must support the answer.
        curve: the curve of the method; what it has reached is taken as it is, without its fit.
        place: which of its subsets.

    Returns:
        The number of scans, its 95 % interval, of which an end beyond reach is infinite, and why there is no
        answer, empty if there is one.
    """
    if reference.reason:
        return math.nan, math.nan, math.nan, reference.reason
    most = math.log(REACH * reference.scans[-1])
    least = math.log(reference.scans[0] / REACH)
    intercept, exponent = reference.coefficients
    needed = (intercept - curve.log_errors[place]) / exponent
    if not least <= needed <= most:
        return math.nan, math.nan, math.nan, BEYOND
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (reference.drawn[0] - curve.log_draws[place]) / np.maximum(reference.drawn[1], 1e-9)
    low, high = percentile_interval(np.clip(drawn, least - 1, most + 1))
    return (
        math.exp(needed),
        math.exp(low) if low >= least else 0.0,
        math.exp(high) if high <= most else math.inf,
        "",
    )
