"""Labels: what a task predicts for each scan of a cohort, from the text of the cohort's tables."""

from collections.abc import Sequence
from typing import Any

from neuropeft.cohorts.index import Scan
from neuropeft.cohorts.splits import session_key
from neuropeft.config import Task
from neuropeft.errors import suggest
from neuropeft.tasks import kind_of
from neuropeft.tasks.values import Place, age_in_years, common_values, comparable, normal_sex

TASK_COLUMNS = ("scan_id", "subject", "session", "y", "sex", "age")
LEFT_OUT_COLUMNS = ("scan_id", "subject", "session", "path", "reason")
Row = dict[str, Any]


def task_rows(task_name: str, task: Task, cohort: str, scans: Sequence[Scan], source: str) -> list[Row]:
    """Return a row per scan that a task can use: TASK_COLUMNS, by subject and session.

    Scans that the filter rejects or that have no target are left out. `y` is the target as its kind writes
    it, `sex` F, M or None, `age` in years or None.

    `source` is where the labels come from, as errors name it.

    Raises:
        UserError: a column or every scan is missing, or the targets are not what their kind needs.
    """
    place = Place(task_name, cohort, source, trains=cohort == task.train)
    columns = {column for scan in scans for column in scan.labels}
    named = {f"where.{column}": column for column in task.where} | task.target_columns
    for key, column in named.items():
        _require(place, key, column, columns)
    kept = _filtered(task, scans)
    if not kept:
        seen = "; ".join(f"{column} has {common_values(scans, column)}" for column in task.filters())
        raise place.error("where", f"the filter leaves none of {len(scans)} scans", f"relax it; {seen}")
    kind = kind_of(task)
    targets = kind.read(place, task, kept)
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
    kind.check(place, task, rows, kept)
    return rows


def left_out(task: Task, scans: Sequence[Scan], rows: Sequence[Row]) -> list[Row]:
    """Return LEFT_OUT_COLUMNS of each scan that passes the filter of a task and is in none of its `rows`."""
    used = {row["scan_id"] for row in rows}
    return [
        {"scan_id": scan.scan_id, "subject": scan.subject, "session": scan.session, "path": scan.path}
        | {"reason": _why_left_out(task, scan)}
        for scan in _filtered(task, scans)
        if scan.scan_id not in used
    ]


def _why_left_out(task: Task, scan: Scan) -> str:
    columns = task.target_columns.values()
    values = [f"{column} is {scan.labels.get(column, '').strip() or '(empty)'}" for column in columns]
    return "; ".join(values) or "it has no label map"


def _filtered(task: Task, scans: Sequence[Scan]) -> list[Scan]:
    """Return the scans that pass the filter of a task, by subject and session."""
    wanted = {column: {comparable(column, v) for v in values} for column, values in task.filters().items()}
    return [
        scan
        for scan in sorted(scans, key=lambda scan: (scan.subject, session_key(scan.session), scan.scan_id))
        if all(comparable(column, scan.labels.get(column, "")) in wanted[column] for column in wanted)
    ]


# -- columns ---------------------------------------------------------------------------------------


def _require(place: Place, key: str, column: str, columns: set[str]) -> None:
    if not columns:
        fix = f"add that table with a column {column!r}, or fix its subjects' names, such as zeros they lost"
        raise place.error(key, "no scan has a row with labels", fix)
    if column not in columns:
        fix = f"{suggest(column, columns)}; or name it in `cohorts.{place.cohort}.columns.{column}`"
        raise place.error(key, f"there is no column {column!r}", fix.replace("?;", "?"))
