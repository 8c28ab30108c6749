"""The tables: trainable parameters, cohorts, methods by tasks, and all scores and costs as tidy rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from neuropeft.config import Config
from neuropeft.evaluate.costs import read_costs
from neuropeft.evaluate.scores import collect
from neuropeft.files import read_tsv
from neuropeft.publish.cohort_table import COHORT_COLUMNS, cohort_records, cohort_sheet
from neuropeft.publish.labels import METHOD_LABELS, backbone_label
from neuropeft.publish.records import (
    COST_COLUMNS,
    SCORE_COLUMNS,
    cost_records,
    score_records,
    trainable_parameters,
)
from neuropeft.publish.score_tables import score_sheet, select
from neuropeft.publish.sheet import Sheet, write_csv, write_sheet

COUNT_COLUMNS = (
    "backbone",
    "method",
    "encoder",
    "head",
    "total",
    "as_published",
    "published",
    "difference",
    "contains",
)


def write_tables(config: Config, results: Path, counts: Path, out: Path) -> None:
    """Write tables 1 to 4 (CSV, Markdown, LaTeX), `scores.csv` and `costs.csv`.

    Args:
        config: the configuration.
        results: the results folder.
        counts: CSV with our counts beside the published ones (`neuropeft params --format csv`).
        out: folder of the tables.

    Raises:
        UserError: a file of results cannot be read.
    """
    scores = collect(config, results)
    costs = read_costs(config, results)
    records = score_records(config, scores, costs)
    write_csv(out / "scores.csv", records, SCORE_COLUMNS)
    write_csv(out / "costs.csv", cost_records(costs), COST_COLUMNS)

    count_rows = [with_difference(row) for row in read_tsv(counts)]
    write_csv(out / "table1.csv", count_rows, COUNT_COLUMNS)
    write_sheet(count_sheet(count_rows), out)

    cohorts = cohort_records(config, results)
    write_csv(out / "table2.csv", cohorts, COHORT_COLUMNS)
    write_sheet(cohort_sheet(cohorts), out)

    record_of = {id(score): record for score, record in zip(scores, records, strict=True)}
    trainable = trainable_parameters(costs)
    for table in (3, 4):
        shown = [record_of[id(score)] for score in select(config, scores, table)]
        write_csv(out / f"table{table}.csv", shown, SCORE_COLUMNS)
        write_sheet(score_sheet(config, scores, trainable, table), out)


def count_sheet(rows: Sequence[Mapping[str, object]]) -> Sheet:
    """Lay out table 1: trainable parameters, ours beside published (Dhinagar et al. 2024, Table 1)."""
    header = (
        "Backbone",
        "Method",
        "Encoder",
        "Head",
        "Total",
        "Counted as published",
        "Published",
        "Difference",
        "The published count contains",
    )
    body = [
        [
            backbone_label(str(row["backbone"])),
            METHOD_LABELS.get(str(row["method"]), str(row["method"])),
            *(_thousands(row[column]) for column in COUNT_COLUMNS[2:8]),
            str(row["contains"]),
        ]
        for row in rows
    ]
    backbones = [row[0] for row in body]
    breaks = frozenset(index for index in range(1, len(body)) if backbones[index] != backbones[index - 1])
    return Sheet(
        "table1",
        "Trainable parameters of each method for a task with two classes, ours beside published.",
        header,
        body,
        ("The paper counts the head in some rows and not in others; the last column tells which.",),
        breaks,
        text_columns=2,
    )


def with_difference(row: Mapping[str, str]) -> dict[str, object]:
    """Return a row of parameter counts with what ours differs from the published one by, None if unknown."""
    ours, published = row["as_published"], row["published"]
    both = ours.isdigit() and published.isdigit()
    return {**row, "difference": int(ours) - int(published) if both else None}


def _thousands(value: object) -> str:
    text = "n/a" if value is None or value == "" else str(value)
    return f"{int(text):,}" if text.lstrip("-").isdigit() else text
