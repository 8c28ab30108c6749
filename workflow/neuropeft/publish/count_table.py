"""Table 1: trainable parameters, ours beside the published ones."""

from collections.abc import Mapping, Sequence

from neuropeft.config import Backbone, Method, label_of_kind
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.sheet import Sheet

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
            label_of_kind(Backbone, str(row["backbone"])),
            label_of_kind(Method, str(row["method"])),
            *(_thousands(row[column]) for column in COUNT_COLUMNS[2:8]),
            str(row["contains"]),
        ]
        for row in rows
    ]
    return Sheet(
        "table1",
        "Trainable parameters of each method for a task with two classes, ours beside published.",
        header,
        body,
        ("The paper counts the head in some rows and not in others; the last column tells which.",),
        part_breaks(body, 1),
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
