"""The scores of each task and cohort, beside published figures, the reference and controls."""

import math
from collections.abc import Mapping, Sequence

from neuropeft.config import Config
from neuropeft.evaluate.against_controls import against_controls
from neuropeft.evaluate.compare import Comparison, compare
from neuropeft.evaluate.scores import Score
from neuropeft.files import MISSING
from neuropeft.grid import Group, used_tasks
from neuropeft.publish.labels import cohort_label, folds_text
from neuropeft.publish.published import published_notes, published_score
from neuropeft.publish.report.gaps import Wording, wording
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks import kind_of

NONE = "-"


def boards(
    config: Config, scores: Sequence[Score], trainable: Mapping[Group, int], seconds: Mapping[Group, float]
) -> list[Sheet]:
    """Return a table for each task and cohort, its contenders by the primary metric, the best first.

    `scores` have draws; `seconds` is how long a cell of each group trained, on average.
    """
    comparisons = {id(one.score): one for one in compare(scores)}
    found = []
    for name in used_tasks(config):
        task = config.tasks[name]
        for cohort in (task.train, *task.zero_shot):
            here = [score for score in scores if (score.contender.task, score.cohort) == (name, cohort)]
            found.append(_board(config, here, comparisons, trainable, seconds))
    return found


def _board(
    config: Config,
    here: Sequence[Score],
    comparisons: Mapping[int, Comparison],
    trainable: Mapping[Group, int],
    seconds: Mapping[Group, float],
) -> Sheet:
    task, cohort = config.tasks[here[0].contender.task], here[0].cohort
    first, *others = kind_of(task).metrics
    shown = [score for score in here if score.metric == first.name]
    shown.sort(
        key=lambda score: (-score.contender.subset.size * score.contender.subset.of_all, *_best_first(score))
    )
    means = [score.mean for score in shown if score.values]
    words = wording(first, task.unit, means[0] if means else math.nan)
    by_metric = {(score.contender, score.metric): score for score in here}
    against = {id(one.score): f"{one.verdict}: {one.name}" for one in against_controls(shown)}
    published = {id(score): pair for score in shown if (pair := published_score(config, score))}
    known = {"Published": bool(published), "Ours - published": bool(published)}
    header = (
        *("Contender", "Training data", f"{first.title(task.unit)}", "95 % interval"),
        *(name for name, there in known.items() if there),
        *("Beside the reference", "Beside the best control", "Trained parameters", "Training of a cell (s)"),
        *(metric.title(task.unit) for metric in others),
    )
    rows = []
    for score in shown:
        group = score.contender.group
        of_others = [by_metric.get((score.contender, metric.name)) for metric in others]
        pair = published.get(id(score))
        rows.append(
            [
                score.contender.label,
                score.contender.subset.label,
                _value(words, score),
                words.interval(score.ci_low, score.ci_high),
                *([_pair(words, pair), _difference(words, score, pair)] if published else []),
                _against_reference(words, score, comparisons.get(id(score))),
                against.get(id(score), NONE),
                f"{trainable[group]:,}" if group in trainable else NONE,
                f"{seconds[group]:,.3g}" if group in seconds else NONE,
                *(MISSING if one is None or not one.values else f"{one.mean:.3f}" for one in of_others),
            ]
        )
    zero_shot = "" if cohort == task.train else ", zero-shot"
    n = max((score.n for score in shown if score.n is not None), default=0)
    better = "higher" if first.higher_is_better else "lower"
    folds = f", {folds_text(config)}" if config.splits.folds else ""
    title = f"{here[0].contender.task} on {cohort_label(config, cohort)}{zero_shot}"
    return Sheet(
        f"{here[0].contender.task} on {cohort}",
        f"{title}: {first.title(task.unit)}, {better} is better, n = {n} test subjects{folds}",
        header,
        rows,
        published_notes(config, shown),
        text_columns=2,
    )


def _best_first(score: Score) -> tuple[bool, float]:
    return not score.values, score.order


def _value(words: Wording, score: Score) -> str:
    done, wanted = len(score.values), len(score.contender.seeds)
    count = "" if done == wanted else f" {done}/{wanted} seeds"
    if not score.values:
        return f"{MISSING}{count}"
    sd = "" if math.isnan(score.sd) else f" ({words.number(score.sd)})"
    return f"{words.number(score.mean)}{sd}{count}"


def _pair(words: Wording, pair: tuple[float, float] | None) -> str:
    if pair is None:
        return NONE
    return words.number(pair[0]) + ("" if math.isnan(pair[1]) else f" ({words.number(pair[1])})")


def _difference(words: Wording, score: Score, pair: tuple[float, float] | None) -> str:
    return NONE if pair is None or not score.values else f"{score.mean - pair[0]:+.{words.digits}f}"


def _against_reference(words: Wording, score: Score, one: Comparison | None) -> str:
    if one is None:
        return "reference" if score.contender.is_reference else NONE
    interval = words.interval(one.ci_low, one.ci_high)
    return f"{one.difference:+.{words.digits}f} ({interval}), {one.verdict}"
