"""What a reader with so many labels should use: of each task, cohort and subset, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuropeft.config import Config
from neuropeft.contenders import MEAN
from neuropeft.evaluate.compare import ALPHA, BETTER, holm
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import Group, used_tasks
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.report.gaps import Wording, gap, gap_from_guessing, wording
from neuropeft.publish.sheet import Sheet
from neuropeft.subsets import Subset

FEW = 20  # test subjects: resampling fewer gives intervals that are clearly too narrow
Trainable = Mapping[Group, int]  # trained parameters


@dataclass(frozen=True)
class Regime:
    """The scores of a task, cohort and subset by the primary metric, of all whose seeds are there."""

    task: str  # its name
    cohort: str  # what is tested on
    subset: Subset  # how much of the training subjects was learnt from
    methods: tuple[Score, ...]  # the ways to fine-tune, the best first
    probes: tuple[Score, ...]  # linear models and neighbours on frozen features, the best first
    controls: tuple[Score, ...]  # what needs no network, the best first; without guessing and shuffled labels
    guess: Score | None  # the score of predicting the training mean
    words: Wording  # how its values are written

    def name(self, score: Score) -> str:
        """Return what sentences call a contender, without the backbone where there is but one."""
        one = score.contender
        if one.sort == "controls":
            return one.short
        backbones = {other.contender.backbone for other in self.methods}
        return one.name if one.is_method and len(backbones) == 1 else one.label

    def place(self, config: Config) -> str:
        """Return what sentences call it: `age on IXI, zero-shot (n = 29)`."""
        zero_shot = "" if self.cohort == config.tasks[self.task].train else ", zero-shot"
        n = self.methods[0].n
        return f"{self.task} on {cohort_label(config, self.cohort)}{zero_shot} (n = {n})"


def regimes(config: Config, scores: Sequence[Score]) -> list[Regime]:
    """Return the regimes that methods were trained in, of each task and cohort the largest subset first."""
    found = []
    for name in used_tasks(config):
        task = config.tasks[name]
        metric = primary_metric(task)
        for cohort in (task.train, *task.zero_shot):
            here = [
                score
                for score in scores
                if (score.contender.task, score.cohort, score.metric) == (name, cohort, metric.name)
                and score.comparable
            ]
            trained = {score.contender.subset for score in here if score.contender.is_method}
            for subset in sorted(trained, reverse=True):
                some = sorted(
                    (score for score in here if score.contender.subset == subset),
                    key=lambda score: score.order,
                )
                controls = [score for score in some if score.contender.sort == "controls"]
                methods = tuple(score for score in some if score.contender.is_method)
                found.append(
                    Regime(
                        name,
                        cohort,
                        subset,
                        methods,
                        tuple(score for score in some if score.contender.sort == "probes"),
                        tuple(score for score in controls if score.contender.method != MEAN),
                        next((score for score in controls if score.contender.method == MEAN), None),
                        wording(metric, task.unit, methods[0].mean),
                    )
                )
    return found


def largest(some: Sequence[Regime]) -> list[Regime]:
    """Return the regime of most training subjects of each task and cohort."""
    found: dict[tuple[str, str], Regime] = {}
    for one in some:
        found.setdefault((one.task, one.cohort), one)
    return list(found.values())


def few_tested(config: Config, some: Sequence[Regime]) -> list[str]:
    """Return a sentence that names where too few subjects are tested for intervals; none if nowhere."""
    few = [one.place(config) for one in largest(some) if (one.methods[0].n or 0) < FEW]
    what = f"fewer than {FEW} test subjects: intervals are too narrow there, and what is shown may be chance"
    return [f"{'; '.join(few)}: {what}."] if few else []


def choose(config: Config, regime: Regime, trainable: Trainable) -> tuple[Score | None, str]:
    """Return what to use in a regime, None if nothing is shown to beat guessing, and why.

    Of all that is not shown to be worse than the best, in pairs and corrected by Holm, the simplest: a
    control before a probe, a probe before a method, of methods the one that trains the fewest parameters.
    """
    simplest_first = [
        *regime.controls,
        *regime.probes,
        *sorted(regime.methods, key=lambda score: trainable.get(score.contender.group, 0)),
    ]
    best = min(simplest_first, key=lambda score: score.order)
    above = gap_from_guessing(config, best, regime.guess)
    if above is not None and above.verdict != BETTER:
        named = f"{regime.name(best)} ({regime.words.value(best)})"
        return None, f"The best of all, {named}, is not shown to beat guessing: more subjects are needed."
    tied = _tied(best, simplest_first)
    chosen = tied[0]
    if chosen is best:
        why = "The best, and the simplest of all that are not shown to be worse."
    else:
        behind = gap(chosen, best)
        assert behind is not None, "it is tied"
        why = (
            f"The simplest of {len(tied)} that are not shown to be worse than the best: "
            f"{regime.words.gap(behind)} "
            f"than {regime.name(best)}."
        )
    if len(tied) == 1:
        why = "Better than everything else: all others are shown to be worse."
    if not chosen.contender.is_method:
        why += " No fine-tune is shown to be better."
    return chosen, why


def _tied(best: Score, some: Sequence[Score]) -> list[Score]:
    """Return the best and, in their order, those that can be compared and are not shown to be worse."""
    others = {id(score): one for score in some if score is not best and (one := gap(best, score)) is not None}
    p = dict(zip(others, holm([one.p for one in others.values()]), strict=True))
    return [score for score in some if score is best or p.get(id(score), 0) >= ALPHA]


def _cost(score: Score, trainable: Trainable, seconds: Mapping[Group, float]) -> str:
    group = score.contender.group
    if not score.contender.is_method or group not in seconds:
        return "no network"
    return f"{trainable.get(group, 0):,} parameters in {seconds[group]:,.3g} s"


def advice_sheet(
    config: Config,
    some: Sequence[Regime],
    trainable: Trainable,
    seconds: Mapping[Group, float],
    subjects: Mapping[tuple[str, Subset], str],
) -> Sheet:
    """Lay out a line for each regime.

    `seconds` is how long a cell of each group trained, on average; `subjects` how many a subset trains on.
    """
    rows = []
    for one in some:
        chosen, why = choose(config, one, trainable)
        method = one.methods[0]
        rows.append(
            [
                one.place(config),
                f"{subjects.get((one.task, one.subset), 'n/a')} ({one.subset.label})",
                "nothing yet" if chosen is None else one.name(chosen),
                "-" if chosen is None else one.words.value(chosen),
                "-" if chosen is None else _cost(chosen, trainable, seconds),
                f"{one.name(method)}: {one.words.value(method)}; {_cost(method, trainable, seconds)}",
                why,
            ]
        )
    return Sheet(
        "advice",
        "What to use with so many labels, and why.",
        ("Task and cohort", "Training subjects", "Use", "Its score", "Trains", "Best fine-tune", "Why"),
        rows,
        (
            "Not shown to be worse does not mean as good: where few are tested, little can be shown. "
            "The simplest: controls before probes of frozen features, these before fine-tunes, of which the "
            "one that trains the fewest parameters.",
            "Shown: by paired differences over test subjects, corrected by Holm for all that stand beside "
            "the best. What is best on these subjects looks a little better than it would on new ones.",
        ),
        frozenset(place for place in range(1, len(some)) if some[place].task != some[place - 1].task),
        text_columns=7,
    )
