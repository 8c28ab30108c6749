"""Paired comparisons: is a method's difference from full fine-tuning within noise?"""

from collections.abc import Sequence
from dataclasses import dataclass

from neuropeft.config import Config
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.scores import CONTROL, Score
from neuropeft.grid import NO_PRETRAINING
from neuropeft.probe_grid import is_probe

REFERENCE_KIND = "full"


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


def compare(config: Config, scores: Sequence[Score]) -> list[Comparison]:
    """Compare every score with full fine-tuning from the same weights, on the same resampled subjects.

    Of several methods of kind full the first is the reference, and itself compared with nothing.
    Scratch and controls, which start from no weights, meet the first full fine-tune of their place. Only
    complete scores with the same seeds and subjects are compared. The intervals reflect the subjects that
    were drawn for testing, not the choice of seeds, and are not adjusted for their number.
    """
    references = [
        score
        for score in scores
        if score.group.backbone != CONTROL
        and not is_probe(score.group)
        and config.methods[score.group.method].kind == REFERENCE_KIND
        and not config.methods[score.group.method].shuffle_labels
    ]
    compared = []
    for score in scores:
        reference = next((other for other in references if _same_place(score, other)), score)
        if reference is not score and _comparable(score, reference):
            compared.append(_compare(score, reference))
    return compared


def _same_place(score: Score, reference: Score) -> bool:
    one, other = score.group, reference.group
    return (
        (score.cohort, score.metric) == (reference.cohort, reference.metric)
        and (one.task, one.subset) == (other.task, other.subset)
        and one.backbone in (other.backbone, CONTROL)
        and one.pretraining in (other.pretraining, NO_PRETRAINING)
    )


def _comparable(score: Score, reference: Score) -> bool:
    return (
        score.complete
        and reference.complete
        and score.draws is not None
        and reference.draws is not None
        and (score.expected, score.subjects) == (reference.expected, reference.subjects)
    )


def _compare(score: Score, reference: Score) -> Comparison:
    assert score.draws is not None
    assert reference.draws is not None
    differences = score.draws - reference.draws
    low, high = percentile_interval(differences)
    return Comparison(
        score,
        f"{reference.group.backbone}/{reference.group.pretraining}/{reference.group.method}",
        score.mean - reference.mean,
        low,
        high,
    )
