"""What was found, in a few questions and answers; each rests on paired intervals, never on means alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuropeft.config import Config
from neuropeft.contenders import REFERENCE_KIND, backbone_label
from neuropeft.evaluate.compare import BETTER, WITHIN_NOISE, WORSE
from neuropeft.evaluate.scores import Score
from neuropeft.grid import NO_PRETRAINING
from neuropeft.grouping import grouped
from neuropeft.publish.report.gaps import Gap, gap, gap_from_guessing
from neuropeft.publish.report.regimes import Regime, Trainable, largest


@dataclass(frozen=True)
class Finding:
    """A question, its answer in a sentence, and a line for each thing that was compared."""

    question: str
    answer: str
    lines: tuple[str, ...]


Line = tuple[str, Gap]  # a sentence, and the comparison that counts for the answer


def findings(config: Config, some: Sequence[Regime], trainable: Trainable) -> list[Finding]:
    """Return what was found at the largest subset of each task and cohort; without comparisons, nothing."""
    whole = largest(some)
    at_home = [one for one in whole if one.cohort == config.tasks[one.task].train]
    abroad = [one for one in whole if one.cohort != config.tasks[one.task].train]
    best_at_home = {one.task: one.methods[0] for one in at_home}
    asked: list[tuple[str, str, list[Line]]] = [
        (
            "Does fine-tuning beat what needs no network?",
            "The best method against the best control",
            [line for one in at_home for line in _against_controls(config, one)],
        ),
        (
            "Does pretraining help?",
            "The best start against training from scratch",
            [line for one in at_home for line in _against_scratch(config, one)],
        ),
        (
            "Do few trained parameters suffice?",
            "The best method that trains fewer parameters against full fine-tuning",
            [line for one in at_home for line in _against_full(config, one, trainable)],
        ),
        (
            "Does it hold on cohorts that were never trained on?",
            "The best method there against guessing",
            [line for one in abroad for line in _zero_shot(config, one, best_at_home.get(one.task))],
        ),
    ]
    return [
        Finding(
            question, f"{compared}: {_tally(one.verdict for _, one in lines)}.", tuple(t for t, _ in lines)
        )
        for question, compared, lines in asked
        if lines
    ]


def _tally(verdicts: Iterable[str]) -> str:
    """Return `of 3 comparisons shown to be better in 1, within noise in 2`, or shorter if all are alike."""
    counts = Counter(verdicts)
    total = sum(counts.values())
    words = {BETTER: "shown to be better", WITHIN_NOISE: "within noise", WORSE: "shown to be worse"}
    if len(counts) == 1:
        (only,) = counts
        return words[only] + (f" in all of {total} comparisons" if total > 1 else "")
    parts = [f"{words[verdict]} in {counts[verdict]}" for verdict in words if counts[verdict]]
    return f"of {total} comparisons {', '.join(parts)}"


def _against_controls(config: Config, regime: Regime) -> list[Line]:
    best, rivals = regime.methods[0], [*regime.controls, *([regime.guess] if regime.guess else [])]
    found = next(((rival, one) for rival in rivals if (one := gap(best, rival))), None)
    if found is None:
        return []
    rival, one = found
    text = (
        f"{regime.place(config)}: the best of {len(regime.methods)} methods, {_value(regime, best)}, is "
        f"{regime.words.gap(one)} than {_value(regime, rival)}."
    )
    if regime.probes and (beside := gap(best, regime.probes[0])):
        text += f" It is {regime.words.gap(beside)} than the best probe, {_value(regime, regime.probes[0])}."
    return [(text, one)]


def _against_scratch(config: Config, regime: Regime) -> list[Line]:
    """Compare full fine-tuning from each start with training from scratch, on each backbone."""
    found = []
    for backbone, some in grouped(regime.methods, lambda score: score.contender.backbone).items():
        full = [score for score in some if _is_full(config, score)]
        scratch = next(
            (score for score in some if config.methods[score.contender.method].kind == "scratch"), None
        )
        untrained = next((score for score in full if score.contender.pretraining == NO_PRETRAINING), None)
        base = scratch or untrained
        started = [score for score in full if score.contender.pretraining != NO_PRETRAINING]
        gaps = [(score, one) for score in started if base and (one := gap(score, base))]
        if not base or not gaps:
            continue
        best, one = gaps[0]
        counts = Counter(gap.verdict for _, gap in gaps)
        text = (
            f"{regime.place(config)}, {backbone_label(config, backbone)}: full fine-tuning from "
            f"{best.contender.pretraining} ({regime.words.value(best)}) is {regime.words.gap(one)} than "
            f"{_value(regime, base)}."
        )
        if len(gaps) > 1:
            each = "; ".join(f"{verdict}: {counts[verdict]}" for verdict in (BETTER, WITHIN_NOISE, WORSE))
            text += f" Of all {len(gaps)} starts, {each}."
        found.append((text, one))
    return found


def _against_full(config: Config, regime: Regime, trainable: Trainable) -> list[Line]:
    """Compare methods with full fine-tuning from the same weights, on each backbone and start."""
    found = []
    for start, some in grouped(regime.methods, lambda score: score.contender.group[1:3]).items():
        full = next((score for score in some if _is_full(config, score)), None)
        if full is None or (all_of := trainable.get(full.contender.group)) is None:
            continue
        fewer = {
            id(score): number
            for score in some
            if (number := trainable.get(score.contender.group)) is not None and number < all_of
        }
        gaps = [(score, one) for score in some if id(score) in fewer and (one := gap(score, full))]
        if not gaps:
            continue
        level = sorted(
            (pair for pair in gaps if pair[1].verdict != WORSE), key=lambda pair: fewer[id(pair[0])]
        )
        weights = "random weights" if start[1] == NO_PRETRAINING else start[1]
        place = f"{regime.place(config)}, {backbone_label(config, start[0])} from {weights}"
        if not level:
            text = f"{place}: all {len(gaps)} are shown to be worse than {_value(regime, full)}."
        else:
            score, one = level[0]
            text = (
                f"{place}: {len(level)} of {len(gaps)} are not shown to be worse than "
                f"{_value(regime, full)}; the "
                f"smallest, {score.contender.short} ({fewer[id(score)]:,} parameters, "
                f"{fewer[id(score)] / all_of:.2%} of full), is {regime.words.gap(one)}."
            )
        found.append((text, gaps[0][1]))
    return found


def _zero_shot(config: Config, regime: Regime, best_at_home: Score | None) -> list[Line]:
    best = regime.methods[0]
    one = gap_from_guessing(config, best, regime.guess)
    if one is None:
        return []
    text = (
        f"{regime.place(config)}: the best there, {_value(regime, best)}, is {regime.words.gap(one)} than "
        "guessing."
    )
    home = next((score for score in regime.methods if _same(score, best_at_home)), None)
    if home is not None and home is not best:
        there = gap_from_guessing(config, home, regime.guess)
        assert there is not None, "the best has one"
        text += (
            f" What is best on {config.tasks[regime.task].train}, {_value(regime, home)}, is "
            f"{regime.words.gap(there)}."
        )
    return [(text, one)]


def _same(score: Score, other: Score | None) -> bool:
    return other is not None and score.contender.line == other.contender.line


def _is_full(config: Config, score: Score) -> bool:
    return config.methods[score.contender.method].kind == REFERENCE_KIND


def _value(regime: Regime, score: Score) -> str:
    return f"{regime.name(score)} ({regime.words.value(score)})"
