"""Are probabilities what they say? Expected calibration error, and a temperature fitted on validation.

Naeini et al. 2015 (the error), Guo et al. 2017 (the temperature).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import binomtest

from neuropeft.evaluate.people import Predicted
from neuropeft.evaluate.tested import Tested
from neuropeft.tasks.base import Array, Run
from neuropeft.tasks.metrics import brier

BINS = 10  # of equal width, from 0 to 1
TEMPERATURES = (0.05, 20.0)
CERTAIN = 1e-6  # probabilities are taken to be at least so far from 0 and 1
SIMULATED = 1000  # sets of labels that follow the probabilities


def calibration_error(y: Array, probability: Array) -> Array:
    """Return the expected calibration error, weighted by how many subjects a bin has.

    Args:
        y: 0 or 1, [..., n].
        probability: of class 1, [n].
    """
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    return np.abs((y - probability) @ (bins[:, None] == np.arange(BINS))).sum(-1) / len(probability)


def error_by_chance(probability: Array, seed: int = 0) -> float:
    """Return the error that perfectly calibrated probabilities [n] stay below in 95 of 100 such samples."""
    drawn = (np.random.default_rng(seed).random((SIMULATED, len(probability))) < probability).astype(float)
    return float(np.quantile(calibration_error(drawn, probability), 0.95))


def log_loss(y: Array, probability: Array) -> float:
    """Return the mean negative log-likelihood of labels [n] under probabilities of class 1 [n]."""
    p = np.clip(probability, CERTAIN, 1 - CERTAIN)
    return float(-np.log(np.where(y == 1, p, 1 - p)).mean())


def temperature(validation: Run) -> float:
    """Return what log-odds are to be divided by, fitted on validation; 1 where that has one class only."""
    if len(np.unique(validation.y)) < 2:
        return 1.0
    fitted = minimize_scalar(
        lambda log: log_loss(validation.y, _cooled(validation.score, np.exp(log))),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(fitted.x))


def scaled(validation: Run, run: Run) -> Run:
    """Return test predictions with the temperature that validation chooses."""
    return replace(run, score=_cooled(run.score, temperature(validation)))


def _cooled(probability: Array, value: float) -> Array:
    return expit(logit(np.clip(probability, CERTAIN, 1 - CERTAIN)) / value)


def calibration(one: Predicted) -> dict[str, float]:
    """Return the figures of a binary task's predictions, each the mean over seeds."""
    before, after = one.tested(), one.tested(scaled)
    chosen = [temperature(validation) for folds in one.runs.values() for validation, _ in folds.values()]
    found = {
        "n": len(before[0].y),
        "ece": _mean(before, lambda y, p: float(calibration_error(y, p))),
        "ece_by_chance": _mean(before, lambda y, p: error_by_chance(p)),
        "log_loss": _mean(before, log_loss),
        "brier": _mean(before, lambda y, p: float(brier(y, p))),
        "temperature": float(np.exp(np.mean(np.log(chosen)))),
        "ece_scaled": _mean(after, lambda y, p: float(calibration_error(y, p))),
        "log_loss_scaled": _mean(after, log_loss),
        "brier_scaled": _mean(after, lambda y, p: float(brier(y, p))),
    }
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        right = np.mean([_right(run, label) for run in before], axis=0)
        low, high = wilson(float(right.sum()), len(right))
        mean = float(right.mean()) if len(right) else float("nan")
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return found


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; it has a width at 0 and 1, too."""
    if not n:
        return float("nan"), float("nan")
    interval = binomtest(round(successes), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _right(run: Tested, label: int) -> Array:
    """Return for each subject of a class whether the threshold puts it there."""
    of_class = run.y == label
    return ((run.score >= run.rule)[of_class] == label).astype(float)


def _mean(runs: Sequence[Tested], value: Callable[[Array, Array], float]) -> float:
    return float(np.mean([value(run.y, run.score) for run in runs]))
