"""Paired comparisons: is a method's difference from the reference within noise, and which methods are tied?

A p-value is that of a t test whose standard error is the SD of the paired bootstrap draws. It has no floor,
as the share of draws beyond 0 has, and so can survive Holm's correction for many methods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t

from neuropeft.contenders import NO_BACKBONE
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.scores import Score
from neuropeft.grid import NO_PRETRAINING
from neuropeft.grouping import grouped
from neuropeft.tasks.base import Array

ALPHA = 0.05
BETTER, WORSE, WITHIN_NOISE = "better", "worse", "within noise"


@dataclass(frozen=True)
class Comparison:
    """A score against the reference of the same task, cohort, backbone, pretraining and subset."""

    score: Score  # what is compared
    reference: str  # name of the reference method
    difference: float  # mean over seeds of the score minus that of the reference, in the metric's unit
    ci_low: float  # lower end of the paired 95 % bootstrap interval over subjects and seeds
    ci_high: float  # its upper end
    p: float  # two-sided p-value of the difference
    # the same, corrected for all that is compared in the task by this metric (Holm 1979); methods, ensembles,
    # and probes and controls apart
    p_holm: float = math.nan

    @property
    def verdict(self) -> str:
        """Whether the score is better, worse, or within noise of the reference."""
        if not self.p_holm < ALPHA:
            return WITHIN_NOISE
        return BETTER if (self.difference > 0) == self.score.higher_is_better else WORSE

    @property
    def within_noise(self) -> bool:
        """Whether the difference is not shown to be more than noise."""
        return self.verdict == WITHIN_NOISE


def compare(scores: Sequence[Score]) -> list[Comparison]:
    """Compare every score with the reference method from the same weights, on the same resampled subjects.

    Of several reference methods the first is meant, and itself compared with nothing.
    Scratch and controls, which start from no weights, meet the first reference of their place; a reference
    that starts from no weights, such as scratch, serves where there is none from the same weights. Only
    complete scores with the same seeds and subjects are compared. Intervals are not adjusted for their
    number, the verdicts are.
    """
    references = grouped((score for score in scores if score.contender.is_reference), where)
    for there in references.values():
        there.sort(key=lambda score: score.contender.pretraining == NO_PRETRAINING)
    compared = []
    for score in scores:
        there = references.get(where(score), [])
        reference = next((other for other in there if _same_place(score, other)), score)
        # An ensemble has its own number of seeds.
        same_seeds = bool(score.contender.members) or score.contender.seeds == reference.contender.seeds
        if reference is not score and same_seeds and (pair := paired(score, reference)):
            difference, draws = pair
            low, high = percentile_interval(draws)
            name, p = "/".join(reference.contender.line), p_value(difference, draws, score.n)
            compared.append(Comparison(score, name, difference, low, high, p))
    return _corrected(compared)


def tie_groups(scores: Sequence[Score]) -> dict[int, int]:
    """Return the tie group, from 1, of each method among those of its task, cohort, subset and metric, by id.

    The best method and all that are not shown to be worse (Holm) are group 1; the best of the others, and
    those not shown to be worse than it, group 2, and so on. Methods that lack seeds have no group.
    """
    groups: dict[int, int] = {}
    methods = [score for score in scores if score.contender.is_method and score.comparable]
    for place in grouped(methods, lambda score: (*where(score), score.subjects)).values():
        left = sorted(place, key=lambda score: score.order)
        number = 0
        while left:
            number += 1
            best, *others = left
            p = holm([_p(other, best) for other in others])
            tied = [best, *(other for other, one in zip(others, p, strict=True) if one >= ALPHA)]
            groups |= {id(score): number for score in tied}
            left = [score for score in left if id(score) not in groups]
    return groups


def _p(score: Score, other: Score) -> float:
    pair = paired(score, other)
    assert pair is not None, "they are of one place"
    return p_value(*pair, score.n)


def holm(p: Sequence[float]) -> Array:
    """Return p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(p)
    corrected = np.empty(len(order))
    stepped = np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.maximum.accumulate(stepped).clip(max=1)
    return corrected


def _corrected(compared: Sequence[Comparison]) -> list[Comparison]:
    families: dict[tuple[object, ...], list[int]] = {}
    for place, one in enumerate(compared):
        contender = one.score.contender
        family = contender.is_method, bool(contender.members)
        families.setdefault((contender.task, one.score.metric, *family), []).append(place)
    found = list(compared)
    for places in families.values():
        for place, p in zip(places, holm([compared[place].p for place in places]), strict=True):
            found[place] = replace(compared[place], p_holm=float(p))
    return found


def where(score: Score) -> tuple[object, ...]:
    """Return the task, subset, cohort and metric that scores must share to be compared."""
    return score.contender.task, score.contender.subset, score.cohort, score.metric


def _same_place(score: Score, reference: Score) -> bool:
    one, other = score.contender, reference.contender
    same_start = one.pretraining == other.pretraining or NO_PRETRAINING in (
        one.pretraining,
        other.pretraining,
    )
    return same_start and one.backbone in (other.backbone, NO_BACKBONE)


def paired(score: Score, other: Score) -> tuple[float, Array] | None:
    """Return the difference of two scores of one metric, each the mean over its own seeds, and its draws.

    None unless both are comparable and of the same subjects: a control that needs an age may be of fewer.
    """
    if not (score.comparable and other.comparable) or score.subjects != other.subjects:
        return None
    assert score.draws is not None
    assert other.draws is not None
    return score.mean - other.mean, score.draws.astype(np.float64) - other.draws


def p_value(difference: float, draws: Array, subjects: int | None = None) -> float:
    """Return the two-sided p of a difference, by the SD of its draws [draws] over `subjects`, if known."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 2 or subjects == 1:
        return 1.0
    freedom = math.inf if subjects is None else subjects - 1
    # The bootstrap's variance is that of n subjects, not of n - 1.
    error = float(np.std(defined)) * math.sqrt(1 + 1 / freedom)
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * t.sf(abs(difference) / error, freedom))
