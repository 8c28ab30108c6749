"""Labels: what a task predicts for each scan of a cohort, from the text of the cohort's tables."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from neuropeft.cohorts.index import Scan
from neuropeft.cohorts.readers import is_missing
from neuropeft.cohorts.splits import SIDES, first_rows, session_key
from neuropeft.config import Task
from neuropeft.errors import UserError, suggest

TASK_COLUMNS = ("scan_id", "subject", "session", "y", "sex", "age")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
OLDEST = 120  # years
STAND_IN = re.compile(r"-(4|7+|8+|9+)|9{3,}")  # how many a table writes that a number is missing
SERIAL_DATES = (20_000, 60_000)  # days since 1900, as spreadsheets store dates from 1954 to 2064
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
Row = dict[str, Any]


class _Place(NamedTuple):
    """What every error about labels names."""

    task: str
    cohort: str
    source: str

    def error(self, key: str, problem: str, mend: str) -> UserError:
        return UserError(
            f"`tasks.{self.task}.{key}`: {problem} in cohort {self.cohort!r} ({self.source}): {mend}"
        )


def task_rows(task_name: str, task: Task, cohort: str, scans: Sequence[Scan], source: str) -> list[Row]:
    """Return a row per scan that a task can use: TASK_COLUMNS, by subject and session.

    Scans that the filter rejects or that have no target are left out. `y` is the index of the class or the
    value of a regression target, `sex` F, M or None, `age` in years or None.

    Args:
        task_name: name of the task.
        task: what it predicts.
        cohort: name of the cohort.
        scans: the cohort's index.
        source: where its labels come from, as errors name it.

    Raises:
        UserError: a column, a class or every scan is missing, a regression target is no number, no age,
            constant or stands for a missing value, or the training cohort has too few subjects to be split.
    """
    place = _Place(task_name, cohort, source)
    columns = {column for scan in scans for column in scan.labels}
    for key, column in [*((f"where.{column}", column) for column in task.where), ("target", task.target)]:
        _require(place, key, column, columns)
    wanted = {column: {comparable(column, v) for v in values} for column, values in task.filters().items()}
    kept = [
        scan
        for scan in sorted(scans, key=lambda scan: (scan.subject, session_key(scan.session), scan.scan_id))
        if all(comparable(column, scan.labels.get(column, "")) in wanted[column] for column in wanted)
    ]
    if not kept:
        seen = "; ".join(f"{column} has {_values(scans, column)}" for column in wanted)
        raise place.error("where", f"the filter leaves none of {len(scans)} scans", f"relax it; {seen}")
    read, check = (_numbers, _check_numbers) if task.kind == "regression" else (_classes, _check_classes)
    targets = read(place, task, kept)
    rows = [
        {
            "scan_id": scan.scan_id,
            "subject": scan.subject,
            "session": scan.session,
            "y": y,
            "sex": normal_sex(scan.labels.get("sex", "")),
            "age": age_in_years(scan.labels.get("age", "")),
        }
        for scan, y in zip(kept, targets, strict=True)
        if y is not None
    ]
    check(place, task, rows, kept)
    _tell_left_out(place, task, [scan for scan, y in zip(kept, targets, strict=True) if y is None])
    return rows


def comparable(column: str, value: object) -> str | float:
    """Return what two table values are compared by: numbers by value, sexes by meaning, text exactly."""
    text = str(value).strip()
    sex = normal_sex(text) if column == "sex" else None
    number = finite(text)
    return sex or (text if number is None else number)


def finite(text: str) -> float | None:
    """Return the number that a text spells; None if it spells none, as n/a, inf and 1_0 do."""
    value = float(text) if NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def age_in_years(text: str) -> float | None:
    """Return the age that a text spells, None if it spells none from 0 to 120 years, as -9 and 43831 do."""
    age = finite(text)
    return age if age is not None and 0 <= age <= OLDEST else None


def normal_sex(text: str) -> str | None:
    """Return F or M for f, female, m and male in any case, None for anything else."""
    return SEXES.get(text.strip().lower())


# -- columns ---------------------------------------------------------------------------------------


def _require(place: _Place, key: str, column: str, columns: set[str]) -> None:
    if not columns:
        mend = (
            f"add that table with a column {column!r}, or mend its subjects' names, such as zeros they lost"
        )
        raise place.error(key, "no scan has a row with labels", mend)
    if column not in columns:
        mend = f"{suggest(column, columns)}; or name it in `cohorts.{place.cohort}.columns.{column}`"
        raise place.error(key, f"there is no column {column!r}", mend.replace("?;", "?"))


def _values(scans: Iterable[Scan], column: str) -> str:
    """Return the commonest values of a column, for errors."""
    counts = Counter(scan.labels.get(column, "").strip() or "(empty)" for scan in scans)
    common = [f"{value!r} ({count} scans)" for value, count in counts.most_common(8)]
    return ", ".join(common) + (", ..." if len(counts) > 8 else "")


def _tell_left_out(place: _Place, task: Task, scans: Sequence[Scan]) -> None:
    """Say which values of the target belong to no class: some are meant to be left out, some are misspelt."""
    others = [scan for scan in scans if not is_missing(scan.labels.get(task.target, ""))]
    if others:
        print(
            f"task {place.task}: {len(others)} scans of cohort {place.cohort} belong to none of its classes "
            f"and are left out: {task.target} is {_values(others, task.target)}"
        )


# -- regression ------------------------------------------------------------------------------------


def _numbers(place: _Place, task: Task, scans: Sequence[Scan]) -> list[float | None]:
    """Return the target of every scan, None where the table has none."""
    read, wanted = finite, "a number"
    if task.target == "age":
        read, wanted = age_in_years, f"an age of 0 to {OLDEST} years"
    values: dict[str, float | None] = {}
    for scan in scans:
        text = scan.labels.get(task.target, "")
        values[scan.scan_id] = read(text)
        if values[scan.scan_id] is None and not is_missing(text):
            problem = f"{task.target!r} of scan {scan.scan_id} is {text!r}, which is not {wanted},"
            raise place.error("target", problem, f"write {wanted}, or n/a to leave the scan out")
    _check_stand_ins(place, task, {scan: value for scan, value in values.items() if value is not None})
    return list(values.values())


def _check_stand_ins(place: _Place, task: Task, values: Mapping[str, float]) -> None:
    """Check that no target is a word for "missing" or a spreadsheet's date: it lies far from all others."""
    missing = {scan for scan, value in values.items() if STAND_IN.fullmatch(f"{value:.15g}")}
    first, last = SERIAL_DATES
    dates = {scan for scan, value in values.items() if first <= value < last and value.is_integer()}
    others = [value for scan, value in values.items() if scan not in missing | dates]
    low, high = min(others, default=0), max(map(abs, others), default=math.inf)
    for scan, value in values.items():
        if scan in missing and (value < 0 <= low or value > 2 * high):
            meaning = "a missing value"
        elif scan in dates and value > 100 * high:
            meaning = "a date of a spreadsheet"
        else:
            continue
        problem = f"{task.target!r} of scan {scan} is {value:g}, which looks like {meaning},"
        raise place.error("target", problem, "write the number that is meant, or n/a to leave the scan out")
    if dates and len(dates) == len(values):
        print(
            f"task {place.task}: every {task.target} in cohort {place.cohort} looks like a date of a "
            f"spreadsheet, for example {values[min(dates)]:g} of scan {min(dates)}; choose another column"
        )


def _check_numbers(place: _Place, task: Task, rows: Sequence[Row], kept: Sequence[Scan]) -> None:
    if not rows:
        problem = f"none of {len(kept)} scans has a value of {task.target!r}"
        raise place.error("target", problem, "fill in the column or choose another")
    if len({row["y"] for row in rows}) == 1:
        problem = f"{task.target!r} is {rows[0]['y']:g} for all {len(rows)} scans"
        raise place.error("target", problem, f"choose a target that varies, or {_drop(place, task)}")
    subjects = len({row["subject"] for row in rows})
    if place.cohort == task.train and subjects < len(SIDES):
        problem = f"only {subjects} subjects have a value of {task.target!r}"
        raise place.error("target", problem, f"a split needs {len(SIDES)}: add subjects or relax `where`")


# -- classification --------------------------------------------------------------------------------


def _classes(place: _Place, task: Task, scans: Sequence[Scan]) -> list[int | None]:
    """Return the class index of every scan, None where its value belongs to no class."""
    index: dict[str | float, int] = {}
    for number, (name, values) in enumerate(task.class_values().items()):
        for value in values:
            if index.setdefault(comparable(task.target, value), number) != number:
                raise UserError(
                    f"`tasks.{place.task}.classes.{name}`: the value {value!r} belongs to another class too; "
                    "give every class its own values"
                )
    return [index.get(comparable(task.target, scan.labels.get(task.target, ""))) for scan in scans]


def _check_classes(place: _Place, task: Task, rows: Sequence[Row], kept: Sequence[Scan]) -> None:
    counts = Counter(row["y"] for row in first_rows(rows).values())
    present = {row["y"] for row in rows}
    for number, (name, values) in enumerate(task.class_values().items()):
        key = f"classes.{name}"
        if number not in present:
            wanted = " or ".join(repr(value) for value in values)
            problem = f"no scan has {task.target} {wanted}"
            seen = f"{task.target} has {_values(kept, task.target)}"
            raise place.error(key, problem, f"name a value that occurs ({seen}), or {_drop(place, task)}")
        if place.cohort == task.train and counts[number] < len(SIDES):
            problem = f"only {counts[number]} subjects are {name} at their first scan"
            mend = f"a split needs {len(SIDES)} of each class: add subjects, relax `where` or merge classes"
            raise place.error(key, problem, mend)


def _drop(place: _Place, task: Task) -> str:
    """Return how to do without the cohort."""
    if place.cohort == task.train:
        return f"train on another cohort (`tasks.{place.task}.train`)"
    return f"remove {place.cohort} from `tasks.{place.task}.zero_shot`, where it cannot be scored"
