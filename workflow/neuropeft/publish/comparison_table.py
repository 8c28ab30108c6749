"""The table of comparisons: each method against the reference, and the methods that are tied."""

from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.compare import Comparison, tie_groups
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.publish.cells import Column, interval, lay_out, numbers, p_text, places, plain
from neuropeft.publish.rank_table import TIES
from neuropeft.publish.records import GROUP_COLUMNS, about
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks import kind_of

REFERENCE = "reference"
COLUMNS = (
    *GROUP_COLUMNS,
    "cohort",
    "zero_shot",
    "metric",
    "mean",
    "tie_group",
    "reference",
    "difference",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "verdict",
    "n",
    "seeds",
)
NOTES = (
    "Difference: score minus that of the reference from the same weights, mean over seeds, with its paired "
    "95 % bootstrap interval. p: two-sided t test with the bootstrap's standard error, corrected by Holm for "
    "all methods, cohorts and subsets of the task by this metric; better or worse below .05.",
    f"Tied: {TIES}",
    "Compared is what has all its seeds, the same as the reference. comparisons.csv has all metrics, and "
    "the probes and controls, which are corrected apart from the methods.",
)
Record = dict[str, Any]


def comparison_records(
    config: Config, scores: Sequence[Score], compared: Sequence[Comparison]
) -> list[Record]:
    """Return a row for each comparison and each reference, with the columns `COLUMNS`.

    They are sorted by task, cohort, subset and metric, and there by tie group and score.
    """
    comparisons = {id(one.score): one for one in compared}
    groups = tie_groups(scores)
    order = {task: place for place, task in enumerate(config.tasks)}
    found = []
    for score in scores:
        one = comparisons.get(id(score))
        if one is None and not (score.contender.is_reference and score.complete):
            continue
        found.append((_place(config, score, groups, order), _record(score, one, groups)))
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]


def _place(config: Config, score: Score, groups: dict[int, int], order: dict[str, int]) -> tuple[Any, ...]:
    task = config.tasks[score.contender.task]
    kind = kind_of(task)
    metrics = [metric.name for metric in (*kind.metrics, *kind.parts)]
    return (
        order[score.contender.task],
        [task.train, *task.zero_shot].index(score.cohort),
        score.contender.subset,
        metrics.index(score.metric),
        score.contender.place[0],
        groups.get(id(score), 0),
        score.order,
        score.contender.place,
    )


def _record(score: Score, one: Comparison | None, groups: dict[int, int]) -> Record:
    record: Record = {
        **about(score.contender, score.cohort, score.zero_shot),
        "metric": score.metric,
        "mean": score.mean,
        "tie_group": groups.get(id(score)),
        "verdict": REFERENCE,
        "n": score.n,
        "seeds": len(score.values),
    }
    if one is not None:
        record |= {
            "reference": one.reference,
            "difference": one.difference,
            "ci_low": one.ci_low,
            "ci_high": one.ci_high,
            "p": one.p,
            "p_holm": one.p_holm,
            "verdict": one.verdict,
        }
    return record


def comparison_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out the methods' comparisons by the primary metric of each task."""
    shown = [
        row
        for row in records
        if row["tie_group"] is not None and row["metric"] == primary_metric(config.tasks[row["task"]]).name
    ]
    columns = (
        *places(config)[:2],
        Column("Subset", lambda row: row["subset"].label),
        plain("Method", "label"),
        numbers("Score", "mean", ".3f"),
        Column("Difference", lambda row: _compared(row, f"{row.get('difference', 0):+.3f}")),
        Column("95 % interval", lambda row: _compared(row, interval(row, "ci_low", "ci_high", "+.3f"))),
        Column("p (Holm)", lambda row: _compared(row, p_text(row.get("p_holm")))),
        plain("", "verdict"),
        plain("Tied", "tie_group"),
    )
    caption = "Methods against the reference, by the first metric of each task."
    return lay_out("comparisons", caption, columns, shown, NOTES, parts=3, text_columns=4)


def _compared(row: Mapping[str, Any], text: str) -> str:
    return "-" if row["verdict"] == REFERENCE else text
