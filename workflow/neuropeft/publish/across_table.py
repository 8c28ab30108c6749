"""The table of tests across tasks: methods that start from the same weights, over all that they share."""

from collections.abc import Sequence
from typing import Any

from neuropeft.config import Backbone, Config, Method, label_of_kind
from neuropeft.evaluate.across import across, friedman, reference_place, too_few
from neuropeft.evaluate.blocks import rankings
from neuropeft.evaluate.scores import Score
from neuropeft.files import MISSING
from neuropeft.publish.cells import number, p_equals, p_text, part_breaks
from neuropeft.publish.comparison_table import REFERENCE
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.sheet import Sheet

COLUMNS = (
    "backbone",
    "pretraining",
    "method",
    "reference",
    "mean_rank",
    "difference",
    "p_holm",
    "p_worse",
    "p_equal",
    "p_better",
    "verdict",
    "blocks",
    "cohorts",
    "p_friedman",
)
NOTES = (
    "Difference: median over blocks of the score minus that of the reference, above 0 is better. Errors "
    "count as 1 minus their share of the error of predicting the mean, so that tasks have one scale. "
    "p: Wilcoxon's signed-rank test, corrected by Holm for the methods of a list.",
    "Worse, equal, better: posterior probabilities of the Bayesian signed-rank test (Benavoli et al. 2017); "
    "equal are differences up to {:g}. Practically equal: this has a probability of .95.",
    "Too few blocks: not even a method that is better in every one of them could be shown to be so.",
)
Record = dict[str, Any]


def across_records(config: Config, scores: Sequence[Score]) -> list[Record]:
    """Return a row for each method of each backbone and start, with the columns `COLUMNS`."""
    records = []
    for ranking in rankings(config, scores):
        place = reference_place(ranking)
        common = {
            "backbone": ranking.backbone,
            "pretraining": ranking.pretraining,
            "reference": None if place is None else ranking.methods[place],
            "blocks": len(ranking.blocks),
            "cohorts": ", ".join(cohort_label(config, one) for one in ranking.cohorts),
            "p_friedman": friedman(ranking),
        }
        for one in across(config, ranking, scores):
            is_reference = one.method == common["reference"]
            found = (one.mean_rank, one.difference, one.p_holm, one.worse, one.equal, one.better)
            numbers = dict(zip(COLUMNS[4:10], found, strict=True))
            verdict = REFERENCE if is_reference else one.verdict or None
            records.append({**common, "method": one.method, **numbers, "verdict": verdict})
    return records


def across_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method; what holds of a whole list is in the notes."""
    body = [
        [
            label_of_kind(Backbone, row["backbone"]),
            row["pretraining"],
            label_of_kind(Method, row["method"]),
            f"{row['mean_rank']:.1f}",
            number(row["difference"], "+.3f"),
            p_text(row["p_holm"]),
            *(number(row[name], ".2f") for name in COLUMNS[7:10]),
            row["verdict"] or MISSING,
        ]
        for row in records
    ]
    starts = [line[:2] for line in body]
    breaks = part_breaks(body, 2)
    first = [0, *sorted(breaks)] if body else []
    notes = [note.format(config.statistics.equivalence) for note in NOTES]
    header = ("Mean rank", "Difference", "p (Holm)", "Worse", "Equal", "Better", "Verdict")
    return Sheet(
        "across_tasks",
        "Methods that start from the same weights, over tasks, cohorts and subsets.",
        ("Backbone", "Start", "Method", *header),
        body,
        [*notes, *(_about(body[index], starts.count(starts[index]), records[index]) for index in first)],
        breaks,
        text_columns=3,
    )


def _about(line: Sequence[str], methods: int, record: Record) -> str:
    """Say what a list of methods rests on."""
    blocks, cohorts = record["blocks"], record["cohorts"]
    text = (
        f"{line[0]} from {line[1]}: Friedman {p_equals(record['p_friedman'])} over {blocks} blocks, tested "
        f"on {cohorts}"
    )
    if too_few(blocks, methods - 1):
        text += ": too few to conclude anything about other tasks"
    if blocks > cohorts.count(",") + 1:
        text += ". Blocks of one cohort share subjects and are not independent: these p-values are too small"
    return f"{text}."
