"""Are probabilities what they say? Expected calibration errors, and a temperature fitted on validation.

Of two classes, the error is of the probability of the second one (Naeini et al. 2015). Of more, it is of the
confidence, the highest probability of a subject, against the share of subjects whose likeliest class is the
true one (Guo et al. 2017, section 2); and, classwise, the mean over classes of the error of the probability
of each against all others (Kull et al. 2019, section 2), which of two classes is the same as the first. The
temperature divides logits (Guo et al. 2017, section 4.2), here the logarithms of probabilities.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from neuropeft.evaluate.people import Predicted
from neuropeft.evaluate.tested import Tested
from neuropeft.tasks.base import Array, Run
from neuropeft.tasks.metrics import brier

BINS = 10  # of equal width, from 0 to 1
TEMPERATURES = (0.05, 20.0)
CERTAIN = 1e-6  # probabilities are taken to be at least so far from 0
SIMULATED = 1000  # sets of labels that follow the probabilities


def calibration_error(y: Array, probability: Array) -> Array:
    """Return the expected calibration error, weighted by how many subjects a bin has.

    `y` is 0 or 1, [..., n], and `probability` that of 1, [n].
    """
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    return np.abs((y - probability) @ (bins[:, None] == np.arange(BINS))).sum(-1) / len(probability)


def judged(y: Array, score: Array) -> tuple[Array, Array]:
    """Return the events [..., n], 0 or 1, whose probabilities [n] are judged.

    `y` holds classes, [..., n], and `score` is of class 1, [n], or of each class, [n, classes].
    """
    return (y, score) if score.ndim == 1 else ((y == score.argmax(1)).astype(float), score.max(1))


def classwise_error(y: Array, score: Array) -> Array:
    """Return the mean of the calibration errors of all classes; `y` and `score` as in `judged`."""
    of_class = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    errors = [calibration_error(y == k, probability) for k, probability in enumerate(of_class.T)]
    return np.mean(errors, axis=0)


def errors_by_chance(score: Array, seed: int = 0) -> tuple[float, float]:
    """Return what both errors of perfectly calibrated scores stay below in 95 of 100 such samples."""
    of_class = probabilities(score)
    drawn = np.random.default_rng(seed).random((SIMULATED, len(score), 1))
    y = (drawn > of_class.cumsum(axis=1)[:, :-1]).sum(-1)  # [SIMULATED, n]
    found = calibration_error(*judged(y, score)), classwise_error(y, score)
    return float(np.quantile(found[0], 0.95)), float(np.quantile(found[1], 0.95))


def probabilities(score: Array, temperature: float = 1.0) -> Array:
    """Return the probability of each class [n, classes] of scores [n] or [n, classes], at a temperature."""
    of_class = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    logits = np.log(np.maximum(of_class, CERTAIN)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_loss(y: Array, score: Array) -> float:
    """Return the mean negative log-likelihood of classes [n] under scores [n] or [n, classes]."""
    return float(-np.log(np.maximum(probabilities(score)[np.arange(len(y)), y.astype(int)], CERTAIN)).mean())


def temperature(validation: Run, between: tuple[float, float] = TEMPERATURES) -> float:
    """Return what logits are to be divided by for the lowest log-loss; 1 where there is one class only."""
    if len(np.unique(validation.y)) < 2:
        return 1.0
    fitted = minimize_scalar(
        lambda log: log_loss(validation.y, probabilities(validation.score, np.exp(log))),
        bounds=np.log(between),
        method="bounded",
    )
    return float(np.exp(fitted.x))


def scaled(validation: Run, run: Run) -> Run:
    """Return test predictions with the temperature that validation chooses."""
    drawn = probabilities(run.score, temperature(validation))
    return replace(run, score=drawn if run.score.ndim > 1 else drawn[:, 1])


def calibration(one: Predicted) -> dict[str, float]:
    """Return the figures of a task with classes, each the mean over seeds; sensitivity only of two."""
    before, after = one.tested(), one.tested(scaled)
    chosen = [temperature(validation) for folds in one.runs.values() for validation, _ in folds.values()]
    by_chance = np.mean([errors_by_chance(run.score) for run in before], axis=0)
    found = {
        "n": len(before[0].y),
        "ece": _mean(before, _error),
        "ece_by_chance": float(by_chance[0]),
        "classwise": _mean(before, classwise_error),
        "classwise_by_chance": float(by_chance[1]),
        "log_loss": _mean(before, log_loss),
        "brier": _mean(before, brier),
        "temperature": float(np.exp(np.mean(np.log(chosen)))),
        "temperature_at_limit": sum(bool(np.isclose(one, TEMPERATURES, rtol=0.01).any()) for one in chosen),
        "ece_scaled": _mean(after, _error),
        "classwise_scaled": _mean(after, classwise_error),
        "log_loss_scaled": _mean(after, log_loss),
        "brier_scaled": _mean(after, brier),
    }
    if before[0].score.ndim > 1:
        return found
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


def _error(y: Array, score: Array) -> Array:
    return calibration_error(*judged(y, score))


def _mean(runs: Sequence[Tested], value: Callable[[Array, Array], Array | float]) -> float:
    return float(np.mean([value(run.y, run.score) for run in runs]))
