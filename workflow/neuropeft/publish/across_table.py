"""The table of tests across tasks: methods that start from the same weights, over all that they share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.across import across, friedman, reference_place, too_few
from neuropeft.evaluate.blocks import rankings
from neuropeft.evaluate.scores import Score
from neuropeft.files import MISSING
from neuropeft.publish.cells import Column, lay_out, numbers, p_equals, p_text, starts
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
    columns = (
        *starts(),
        numbers("Mean rank", "mean_rank", ".1f"),
        numbers("Difference", "difference", "+.3f"),
        Column("p (Holm)", lambda row: p_text(row["p_holm"])),
        numbers("Worse", "p_worse", ".2f"),
        numbers("Equal", "p_equal", ".2f"),
        numbers("Better", "p_better", ".2f"),
        Column("Verdict", lambda row: row["verdict"] or MISSING),
    )
    notes = [note.format(config.statistics.equivalence) for note in NOTES]
    caption = "Methods that start from the same weights, over tasks, cohorts and subsets."
    sheet = lay_out("across_tasks", caption, columns, records, notes, parts=2)
    of_start = [line[:2] for line in sheet.rows]
    first = [0, *sorted(sheet.breaks)] if records else []
    about = (_about(sheet.rows[one], of_start.count(of_start[one]), records[one]) for one in first)
    return replace(sheet, notes=[*notes, *about])


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
