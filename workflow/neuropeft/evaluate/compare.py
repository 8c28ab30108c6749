"""Paired comparisons: is a method's difference from full fine-tuning within noise?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuropeft.contenders import NO_BACKBONE
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.scores import Score
from neuropeft.grid import NO_PRETRAINING


@dataclass(frozen=True)
class Comparison:
    """A score against the reference of the same task, cohort, backbone, pretraining and subset.

    Attributes:
        score: what is compared.
        reference: name of the reference method.
        difference: mean over seeds of the score minus that of the reference, in the metric's unit.
        ci_low: lower end of the paired 95 % bootstrap interval over subjects.
        ci_high: its upper end.
    """

    score: Score
    reference: str
    difference: float
    ci_low: float
    ci_high: float

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.ci_low <= 0 <= self.ci_high


def compare(scores: Sequence[Score]) -> list[Comparison]:
    """Compare every score with full fine-tuning from the same weights, on the same resampled subjects.

    Of several methods of kind full the first is the reference, and itself compared with nothing.
    Scratch and controls, which start from no weights, meet the first full fine-tune of their place. Only
    complete scores with the same seeds and subjects are compared. The intervals reflect the subjects that
    were drawn for testing, not the choice of seeds, and are not adjusted for their number.
    """
    references: dict[tuple[object, ...], list[Score]] = {}
    for score in scores:
        if score.contender.is_reference:
            references.setdefault(_where(score), []).append(score)
    compared = []
    for score in scores:
        there = references.get(_where(score), [])
        reference = next((other for other in there if _same_place(score, other)), score)
        if reference is not score and _comparable(score, reference):
            compared.append(_compare(score, reference))
    return compared


def _where(score: Score) -> tuple[object, ...]:
    return score.contender.task, score.contender.subset, score.cohort, score.metric


def _same_place(score: Score, reference: Score) -> bool:
    one, other = score.contender, reference.contender
    return one.backbone in (other.backbone, NO_BACKBONE) and one.pretraining in (
        other.pretraining,
        NO_PRETRAINING,
    )


def _comparable(score: Score, reference: Score) -> bool:
    return (
        score.complete
        and reference.complete
        and score.draws is not None
        and reference.draws is not None
        and (score.contender.seeds, score.subjects) == (reference.contender.seeds, reference.subjects)
    )


def _compare(score: Score, reference: Score) -> Comparison:
    assert score.draws is not None
    assert reference.draws is not None
    differences = score.draws.astype(np.float64) - reference.draws
    low, high = percentile_interval(differences)
    return Comparison(
        score,
        "/".join(reference.contender.line),
        score.mean - reference.mean,
        low,
        high,
    )
