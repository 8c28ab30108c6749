"""The scores of variants beside those of the cells that they are variants of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import p_value, paired
from neuropeft.evaluate.scores import Score, primary_metric, read_scores
from neuropeft.publish.cells import Column, differences, intervals, lay_out, numbers, places
from neuropeft.publish.records import GROUP_COLUMNS, about, add_holm
from neuropeft.publish.sheet import Sheet
from neuropeft.variant_names import INTERPOLATION, Analysis, interpolated, variant_of
from neuropeft.variants import variants, varied

SHOWN = ("metric", "mean", "sd", "ci_low", "ci_high", "n")
COLUMNS = (
    *(
        *GROUP_COLUMNS,
        "variant",
        "cohort",
        "zero_shot",
        *SHOWN,
        "base_mean",
        "difference",
        "difference_ci_low",
    ),
    *("difference_ci_high", "p", "p_holm", "reason"),
)
CAPTIONS: dict[Analysis, str] = {
    "interpolation": "Networks between the start (0) and the fine-tuned weights (1), by the first metric of "
    "each task.",
    "robustness": "What methods predict of changed test scans, by the first metric of each task.",
}
PAIRED = (
    "Difference: score minus that of the {}, with its paired 95 % bootstrap interval. p: two-sided t test "
    "with the bootstrap's standard error, corrected by Holm for all that is in this table of the task. "
    "{}.csv has all metrics."
)
NOTES: dict[Analysis, tuple[str, ...]] = {
    "interpolation": (
        "The weights are (1 - a) * start + a * fine-tuned (Wortsman 2022, WiSE-FT). The starts have no head "
        "for the task, so that the head stays the fine-tuned one at every share: at 0 it is the fine-tuned "
        "head on the pretrained encoder, and no zero-shot classifier.",
        "Methods of low rank and of scales are merged into plain weights first. Prompts, adapters and others "
        "that do not merge have nothing between start and end and are left out. No share is chosen.",
        PAIRED.format("fine-tuned network", "interpolation"),
    ),
    "robustness": (
        "noise: SD of Gaussian noise, in stored units, outside the background. bias: largest logarithm of a "
        "smooth field. contrast: largest bend of the curve that maps intensities. rotate_deg: largest "
        "rotation about each axis. Each scan has one draw, up to that strength, the same for all methods.",
        "Thresholds are those of the validation scans as they are.",
        PAIRED.format("same scans as they are", "robustness"),
    ),
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Varied:
    """A variant of a method on a cohort."""

    base: Score  # the score of the method itself
    variant: str  # its name
    score: Score  # its score


def read_varied(config: Config, results: Path, analysis: Analysis) -> list[Varied]:
    """Return the scores of all variants of an analysis, by task, cohort, method, metric and variant."""
    bases = read_scores(config, results, with_draws=True, some=varied(config)[analysis])
    scores = read_scores(config, results, with_draws=True, some=variants(config, analysis))
    found: dict[tuple[object, ...], list[Score]] = {}
    for score in scores:
        task, *line, method, subset = score.contender.group
        group = (task, *line, variant_of(method)[0], subset)
        found.setdefault((group, score.cohort, score.metric), []).append(score)
    tasks = list(config.tasks)
    bases.sort(
        key=lambda base: (tasks.index(base.contender.task), base.zero_shot, base.cohort, base.contender.place)
    )
    return [
        Varied(base, variant_of(score.contender.method)[1], score)
        for base in bases
        for score in found[base.contender.group, base.cohort, base.metric]
    ]


def primary(config: Config, some: Sequence[Varied]) -> list[Varied]:
    """Return those by the first metric of their task that have a value."""
    first = {name: primary_metric(task).name for name, task in config.tasks.items()}
    return [one for one in some if one.score.metric == first[one.base.contender.task] and one.score.values]


def variant_records(some: Sequence[Varied]) -> list[Record]:
    """Return a row, with the columns `COLUMNS`, for each variant, cohort and metric."""
    rows = [_record(one) for one in some]
    add_holm(rows, "task", "metric")
    return rows


def _record(one: Varied) -> Record:
    row: Record = {
        **about(one.base.contender, one.score.cohort, one.score.zero_shot),
        **{name: getattr(one.score, name) for name in SHOWN},
        "variant": one.variant,
        "base_mean": one.base.mean,
        "reason": one.score.reason or None,
    }
    if one.variant != interpolated(1) and (pair := paired(one.score, one.base)):
        difference, draws = pair
        low, high = percentile_interval(draws)
        row |= {"difference": difference, "difference_ci_low": low, "difference_ci_high": high}
        row["p"] = p_value(difference, draws, one.score.n)
    return row


def variant_sheet(config: Config, analysis: Analysis, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each variant, by the first metric of each task."""
    shown = [
        row
        for row in records
        if row["metric"] == primary_metric(config.tasks[row["task"]]).name and row["n"] is not None
    ]
    columns = (
        *places(config),
        Column(
            "Share" if analysis == INTERPOLATION else "Change", lambda row: row["variant"].replace("-", " ")
        ),
        numbers("Score", "mean", ".3f"),
        intervals("ci", ".3f"),
        *differences("Difference"),
    )
    return lay_out(analysis, CAPTIONS[analysis], columns, shown, NOTES[analysis], parts=3, text_columns=4)
