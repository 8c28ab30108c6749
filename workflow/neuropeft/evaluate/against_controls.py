"""A method against its controls: is it worth more than what needs no fine-tune?"""

from collections.abc import Sequence
from dataclasses import dataclass

from neuropeft.contenders import REAL, Contender
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import paired, where
from neuropeft.evaluate.scores import Score
from neuropeft.grid import NO_PRETRAINING
from neuropeft.grouping import grouped
from neuropeft.tasks.base import Array


@dataclass(frozen=True)
class AgainstControl:
    """A method's score against the best of its controls."""

    score: Score  # of the method
    control: Score  # the best score of its controls
    difference: float  # by how much the method is better, in the metric's unit; negative if it is worse
    ci_low: float  # lower end of the paired 95 % bootstrap interval over subjects
    ci_high: float  # its upper end

    @property
    def is_below(self) -> bool:
        """Whether the method is worse, be it within noise or not."""
        return self.difference < 0

    @property
    def verdict(self) -> str:
        """`below`, `above`, or either within noise, where the interval holds 0."""
        side = "below" if self.is_below else "above"
        return f"{side}, within noise" if self.ci_low <= 0 <= self.ci_high else side

    @property
    def name(self) -> str:
        """What the control is called beside the method."""
        return "its untrained twin" if self.control.contender.is_method else self.control.contender.short


def against_controls(scores: Sequence[Score]) -> list[AgainstControl]:
    """Compare every method with the best of its controls on the same subjects.

    They are the controls of its task but for real images, the probes of its frozen backbone, pretrained and
    untrained, and its untrained twin, with the same subset. Scores must be complete and have draws; seeds
    need not be the same, since the interval is over subjects. The best of several is the best partly by
    chance, which speaks against the method.
    """
    places = grouped(scores, where)
    found = []
    for score in scores:
        if score.contender.is_method:
            controls = [
                (other, pair)
                for other in places[where(score)]
                if _is_control(other.contender, score.contender) and (pair := paired(score, other))
            ]
            if controls:
                found.append(_compare(score, *min(controls, key=lambda one: one[0].order)))
    return found


def _is_control(one: Contender, method: Contender) -> bool:
    if one.is_method:
        twin = (one.backbone, one.method) == (method.backbone, method.method)
        return twin and one.pretraining == NO_PRETRAINING != method.pretraining
    if one.method == REAL:
        return False
    starts = (method.pretraining, NO_PRETRAINING)
    probe = one.sort == "probes" and one.backbone == method.backbone and one.pretraining in starts
    return one.is_control or probe


def _compare(score: Score, control: Score, pair: tuple[float, Array]) -> AgainstControl:
    sign, (difference, draws) = 1 if score.higher_is_better else -1, pair
    return AgainstControl(score, control, sign * difference, *percentile_interval(sign * draws))
