"""Table 1: trainable parameters, ours beside the published ones."""

from collections.abc import Mapping, Sequence

from neuropeft.config import Backbone, Method, label_of_kind
from neuropeft.files import MISSING
from neuropeft.publish.cells import Column, lay_out, plain
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
    titles = ("Encoder", "Head", "Total", "Counted as published", "Published", "Difference")
    columns = (
        Column("Backbone", lambda row: label_of_kind(Backbone, row["backbone"])),
        Column("Method", lambda row: label_of_kind(Method, row["method"])),
        *(_counts(title, name) for title, name in zip(titles, COUNT_COLUMNS[2:8], strict=True)),
        plain("The published count contains", "contains"),
    )
    caption = "Trainable parameters of each method for a task with two classes, ours beside published."
    note = "The paper counts the head in some rows and not in others; the last column tells which."
    return lay_out("table1", caption, columns, rows, (note,), text_columns=2)


def with_difference(row: Mapping[str, str]) -> dict[str, object]:
    """Return a row of parameter counts with what ours differs from the published one by, None if unknown."""
    ours, published = row["as_published"], row["published"]
    both = ours.isdigit() and published.isdigit()
    return {**row, "difference": int(ours) - int(published) if both else None}


def _counts(title: str, name: str) -> Column:
    def text(row: Mapping[str, object]) -> str:
        value = MISSING if row[name] in (None, "") else str(row[name])
        return f"{int(value):,}" if value.lstrip("-").isdigit() else value

    return Column(title, text)
