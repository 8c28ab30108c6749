"""Region volumes that a cohort brings along, as FreeSurfer measures them: a control is fitted on them."""

from collections.abc import Sequence
from pathlib import Path

from neuropeft.cohorts.index import Scan
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv
from neuropeft.tasks.values import finite, is_missing

KEYS = ("subject", "session")


def read_morphometry(cohort: str, path: Path, scans: Sequence[Scan]) -> list[dict[str, object]]:
    """Return the region volumes of each scan of a cohort: `scan_id`, and a number or None for each region.

    A row without a session stands for all scans of its subject.

    Args:
        cohort: its name.
        path: TSV or CSV with `subject`, optionally `session`, and a column of numbers for each region.
        scans: the cohort's index.

    Raises:
        UserError: a column is missing, a value is no number, two rows are of one scan, or none is of any.
    """
    rows = read_tsv(path)
    regions = [column for column in (rows[0] if rows else ()) if column not in KEYS]
    if not regions or "subject" not in rows[0]:
        raise UserError(f"{path}: `cohorts.{cohort}.morphometry` needs a column `subject` and one per region")
    volumes: dict[tuple[str, str], dict[str, object]] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        session = row.get("session", "")
        key = (
            row["subject"].strip().removeprefix("sub-"),
            "" if is_missing(session) else session.strip().removeprefix("ses-"),
        )
        if key in volumes:
            raise UserError(f"{where}: a second row of {' '.join(key).strip()}; keep one")
        volumes[key] = {region: _number(row[region], region, where) for region in regions}
    unknown: dict[str, object] = dict.fromkeys(regions)
    found: list[dict[str, object]] = []
    matched = 0
    for scan in scans:
        own = volumes.get((scan.subject, scan.session or ""), volumes.get((scan.subject, "")))
        matched += own is not None
        found.append({"scan_id": scan.scan_id, **(own or unknown)})
    if not matched:
        example = next(iter(volumes))[0]
        raise UserError(
            f"{path}: none of its subjects, such as {example}, has a scan in cohort {cohort!r}, whose first "
            f"is {scans[0].subject}; name subjects as the cohort does"
        )
    if matched < len(scans):
        print(f"cohort {cohort}: {len(scans) - matched} of {len(scans)} scans have no row in {path}")
    return found


def _number(text: str, region: str, where: str) -> float | None:
    value = finite(text)
    if value is None and not is_missing(text):
        raise UserError(f"{where}: {region} is {text!r}; write a number, or {MISSING} where it is unknown")
    return value
