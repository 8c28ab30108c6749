"""What tables share that have a line for each row of results: their columns, and how a cell is written."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from neuropeft.config import Backbone, Config, Method, label_of_kind
from neuropeft.evaluate.scores import primary_metric
from neuropeft.files import MISSING
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.sheet import Sheet

Record = Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table: its title, and what it says of a row of results."""

    title: str
    text: Callable[[Record], str]


def plain(title: str, name: str) -> Column:
    """Return a column that holds values as they are."""
    return Column(title, lambda row: str(row[name]))


def numbers(title: str, name: str, form: str) -> Column:
    """Return a column of numbers in a format, n/a where there is none."""
    return Column(title, lambda row: number(row.get(name), form))


def intervals(name: str, form: str) -> Column:
    """Return a column of the intervals from `{name}_low` to `{name}_high`."""
    return Column("95 % interval", lambda row: interval(row, f"{name}_low", f"{name}_high", form))


def differences(title: str) -> list[Column]:
    """Return the columns of a paired difference: itself, its interval, and its p corrected by Holm."""
    p = Column("p (Holm)", lambda row: p_text(row.get("p_holm")))
    return [numbers(title, "difference", "+.3f"), intervals("difference_ci", "+.3f"), p]


def places(config: Config, metric: bool = True) -> list[Column]:
    """Return the columns of the task, with its first metric or without, of the cohort and of the method."""
    task = Column("Task", lambda row: task_text(config, row["task"])) if metric else plain("Task", "task")
    return [task, Column("Cohort", lambda row: cohort_text(config, row)), plain("Method", "label")]


def starts() -> list[Column]:
    """Return the columns that say which backbone a row is about, what it starts from, and the method."""
    return [
        Column("Backbone", lambda row: label_of_kind(Backbone, row["backbone"])),
        plain("Start", "pretraining"),
        Column("Method", lambda row: label_of_kind(Method, row["method"])),
    ]


def lay_out(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Record],
    notes: Sequence[str] = (),
    parts: int = 1,
    text_columns: int = 3,
) -> Sheet:
    """Return the table of some columns; a new part begins where one of the first `parts` columns changes."""
    body = [[column.text(row) for column in columns] for row in rows]
    header = [column.title for column in columns]
    return Sheet(name, caption, header, body, notes, part_breaks(body, parts), text_columns)


def number(value: Any, form: str) -> str:
    """Return a number in a format, n/a where there is none."""
    return MISSING if value is None or math.isnan(value) else format(value, form)


def interval(row: Record, low: str, high: str, form: str) -> str:
    """Return `0.71 to 0.90` from two columns of a row, n/a where there is none."""
    ends = [number(row.get(name), form) for name in (low, high)]
    return MISSING if MISSING in ends else " to ".join(ends)


def p_text(p: float | None) -> str:
    """Return `0.034`, `< 0.001`, or n/a where there is none."""
    text = number(p, ".3f")
    return "< 0.001" if text != MISSING and p is not None and p < 0.001 else text


def p_equals(p: float) -> str:
    """Return `p = 0.034` or `p < 0.001`."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def task_text(config: Config, task: str) -> str:
    """Return a task and its first metric, with the unit."""
    spec = config.tasks[task]
    return f"{task}: {primary_metric(spec).title(spec.unit)}"


def cohort_text(config: Config, row: Record, with_n: bool = True) -> str:
    """Return the cohort of a row, that it is simulated or zero-shot, and how many subjects there are."""
    text = cohort_label(config, row["cohort"]) + (", zero-shot" if row["zero_shot"] else "")
    return f"{text}, n = {row['n']}" if with_n and "n" in row else text


def part_breaks(body: Sequence[Sequence[str]], columns: int) -> frozenset[int]:
    """Return the rows that differ from the one above in one of the first columns."""
    return frozenset(
        index for index in range(1, len(body)) if body[index][:columns] != body[index - 1][:columns]
    )
