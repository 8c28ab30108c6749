"""Cells that tables share: numbers, intervals, p-values, cohorts, and where a new part begins."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.scores import primary_metric
from neuropeft.files import MISSING
from neuropeft.publish.labels import cohort_label


def number(value: Any, form: str) -> str:
    """Return a number in a format, n/a where there is none."""
    return MISSING if value is None or math.isnan(value) else format(value, form)


def interval(row: Mapping[str, Any], low: str, high: str, form: str) -> str:
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


def cohort_text(config: Config, row: Mapping[str, Any]) -> str:
    """Return the cohort of a row, that it is simulated or zero-shot, and how many subjects there are."""
    text = cohort_label(config, row["cohort"]) + (", zero-shot" if row["zero_shot"] else "")
    return f"{text}, n = {row['n']}" if "n" in row else text


def part_breaks(body: Sequence[Sequence[str]], columns: int) -> frozenset[int]:
    """Return the rows that differ from the one above in one of the first columns."""
    return frozenset(
        index for index in range(1, len(body)) if body[index][:columns] != body[index - 1][:columns]
    )
