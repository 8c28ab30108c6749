"""What a prediction is worth: split conformal intervals and sets, and calibrated probabilities.

All of it follows from the validation subjects of the exported cell, which its weights were not fitted to
(Vovk 2005; Lei 2018). Where validation chose the epoch, its errors are a little too small; the card therefore
says how many test subjects their intervals hold.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropeft.evaluate.calibration import probabilities, temperature
from neuropeft.tasks.base import Array, Run, TaskKind

LEVEL = 0.9  # of intervals and sets: 95 % would take 19 validation subjects
# Probabilities are only ever drawn together: a dozen subjects that are told apart by luck would otherwise
# make every prediction certain.
TEMPERATURES = (1.0, 10.0)


@dataclass(frozen=True)
class Interval:
    """What validation tells of a model's predictions.

    Attributes:
        n: validation subjects.
        level: share of people whose interval or set holds their true value, on average; below `LEVEL` where
            there are too few subjects.
        largest: half the width of an interval in the target's unit; or, of classes, the largest value of 1
            less the probability that a class of the set may have. NaN where there is neither.
        temperature: what the logarithms of probabilities are divided by; 1 leaves them.
        rule: by what a class is predicted, see `TaskKind.rule`: a threshold, or a number per class.
    """

    n: int
    level: float
    largest: float
    temperature: float
    rule: tuple[float, ...]

    def stored(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Interval":
        """Return what `stored` gave."""
        values: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in stored.items()
        }
        return cls(**{**values, "rule": tuple(stored["rule"])})

    def holds(self, kind: TaskKind, run: Run) -> NDArray[np.bool_]:
        """Return whether the interval or set of each subject holds the true value, [n] bool."""
        return _misfit(kind, run.y, run.score) <= self.largest


def fit_interval(kind: TaskKind, validation: Run) -> Interval:
    """Return what the validation run of a model tells of its predictions."""
    n = len(validation.subjects)
    misfit = _misfit(kind, validation.y, validation.score)
    rank = min(n, math.ceil((n + 1) * LEVEL))
    classes = kind.every_stratum
    return Interval(
        n,
        min(LEVEL, n / (n + 1)),
        float(np.sort(misfit)[rank - 1]) if kind.regresses or classes else math.nan,
        temperature(validation, TEMPERATURES) if classes else 1.0,
        tuple(np.atleast_1d(kind.rule(validation, validation)[0]).tolist()) if classes else (),
    )


def predicted_class(score: Array, rule: tuple[float, ...]) -> int:
    """Return the class that scores [1] or [classes] and a rule predict, as the metrics take it."""
    return int(score[0] >= rule[0]) if len(score) == 1 else int((score / np.array(rule)).argmax())


def _misfit(kind: TaskKind, y: Array, score: Array) -> Array:
    """Return how badly each prediction fits: the error, or 1 less the probability of the true class, [n]."""
    if kind.regresses:
        return np.abs(y - score)
    if not kind.every_stratum:
        return np.full(len(y), math.nan)
    return 1 - probabilities(score)[np.arange(len(y)), y.astype(int)]
