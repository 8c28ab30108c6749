"""By how much one score is better than another, and whether that is more than noise."""

import math
from dataclasses import dataclass

import numpy as np

from neuropeft.config import Config
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import BETTER, WITHIN_NOISE, WORSE, p_value, paired
from neuropeft.evaluate.scores import Score
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Metric


@dataclass(frozen=True)
class Gap:
    """A paired difference between two scores of one metric on the same subjects."""

    by: float  # how much better the first is, whatever the direction of the metric; negative if it is worse
    low: float  # lower end of the paired 95 % bootstrap interval over subjects
    high: float  # its upper end
    p: float  # two-sided p of the difference, not corrected for others

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval leaves out 0, else `within noise`."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else WITHIN_NOISE


def gap(score: Score, other: Score) -> Gap | None:
    """Return how much better a score is than another of its task, cohort and metric.

    Their seeds may differ in number: each is the mean over its own. None where seeds are missing, or where
    other subjects were tested, as of a control that needs an age which not all have.
    """
    pair = paired(score, other)
    return _gap(score, *pair) if pair else None


def gap_from_guessing(config: Config, score: Score, mean: Score | None) -> Gap | None:
    """Return how much better a primary metric is than guessing.

    `mean` is the score of predicting the training mean: guessing, where the metric has no value of its own.
    """
    chance = kind_of(config.tasks[score.contender.task]).chance
    if chance is None:
        return None if mean is None else gap(score, mean)
    assert score.draws is not None
    return _gap(score, score.mean - chance, score.draws.astype(np.float64) - chance)


def _gap(score: Score, difference: float, draws: np.ndarray) -> Gap:
    low, high = percentile_interval(draws)
    p = p_value(difference, draws, score.n)
    if score.higher_is_better:
        return Gap(difference, low, high, p)
    return Gap(-difference, -high, -low, p)


@dataclass(frozen=True)
class Wording:
    """How values of a metric are written."""

    label: str  # the metric's name
    unit: str  # with a space before it, or empty
    digits: int  # behind the point: three, or as many as make three that count of a value in the task's unit

    def value(self, score: Score) -> str:
        """Return `MAE 9.09 years, 7.72 to 10.53`."""
        return (
            f"{self.label} {self.number(score.mean)}{self.unit}, {self.interval(score.ci_low, score.ci_high)}"
        )

    def interval(self, low: float, high: float) -> str:
        """Return `7.72 to 10.53`, `n/a` where it is not known."""
        return "n/a" if math.isnan(low) else f"{self.number(low)} to {self.number(high)}"

    def number(self, value: float) -> str:
        """Return a value with the digits of the metric; 0 has no sign."""
        text = f"{value:.{self.digits}f}"
        return text if float(text) else text.lstrip("-")

    def gap(self, one: Gap) -> str:
        """Return `0.63 years worse (-0.48 to 1.73, within noise)`: the interval is of what is said."""
        how, by, low, high = "better", one.by, one.low, one.high
        if by < 0:
            how, by, low, high = "worse", -by, -high, -low
        noise = ", within noise" if one.verdict == WITHIN_NOISE else ""
        return f"{self.number(by)}{self.unit} {how} ({self.interval(low, high)}{noise})"


def wording(metric: Metric, unit: str, typical: float) -> Wording:
    """Return how values of a metric are written that are about as large as a typical one."""
    if not metric.in_unit:
        return Wording(metric.label, "", 3)
    before = math.floor(math.log10(abs(typical))) if typical and math.isfinite(typical) else 0
    return Wording(metric.label, f" {unit}" if unit else "", min(3, max(0, 2 - before)))
