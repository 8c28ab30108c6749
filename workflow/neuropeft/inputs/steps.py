"""One step over a chunk of scans: what becomes of each goes into the chunk table.

A chunk table carries all scans of the chunk. A scan that cannot be processed becomes a row with status
`failed`, the step and the reason; the later steps pass it on. What is no scan's fault (see `errors.fault`)
stops the job instead.
"""

import json
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError, fault
from neuropeft.files import MISSING, read_tsv, write_text, write_tsv
from neuropeft.inputs.base import Folders, Row, Step
from neuropeft.inputs.io import ScanError, check_there
from neuropeft.progress import track

SCAN_COLUMNS = (
    *("scan_id", "subject", "session", "path", "mask", "mask_size"),
    *("raw_sha1", "status", "step", "reason"),
)


def run_step(
    step: Step,
    rows_from: str | Path,
    chunk: str | None,
    folders: Folders,
    settings: Mapping[str, Any],
    table: str | Path,
) -> None:
    """Take the scans of a chunk one step on.

    `rows_from` is the chunk table of the step before; for the first step it is the index of the cohort, of
    which `chunk` names some rows. `settings` are what the rule gives the step, and `table` is the chunk table
    to write.

    Raises:
        UserError: the index has no such chunk, or the job cannot go on.
    """
    rows = read_tsv(rows_from)
    columns = tuple(rows[0]) if rows else ()
    if chunk is not None:
        rows, columns = _first_rows(rows, rows_from, chunk), SCAN_COLUMNS
    _describe(folders.derivatives)
    if folders.temporary is not None:  # Snakemake waits for it, even if no scan is good
        folders.temporary.mkdir(parents=True, exist_ok=True)
    done = [
        _advance(step, row, folders, settings, check=chunk is not None)
        for row in track(rows, len(rows), step.name)
    ]
    write_tsv(table, done, (*columns, *step.adds))


def read_chunks(tables: Iterable[str | Path]) -> list[Row]:
    """Return the rows of all chunk tables of a cohort, sorted by scan_id."""
    return sorted((row for table in tables for row in read_tsv(table)), key=lambda row: row["scan_id"])


def _first_rows(rows: list[Row], index: str | Path, chunk: str) -> list[Row]:
    found = [row for row in rows if row["chunk"] == chunk]
    if not found:
        raise UserError(f"{index} has no chunk {chunk}; run the workflow again, which rewrites it")
    return [{**row, "status": "ok", "step": MISSING, "reason": MISSING} for row in found]


def _describe(derivatives: Path) -> None:
    """Write what makes a folder a BIDS derivative; jobs of several chunks write the same."""
    description = {
        "Name": "neuropeft preprocessing",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neuropeft"}],
    }
    write_text(derivatives / "dataset_description.json", json.dumps(description, indent=2) + "\n")


def _advance(step: Step, row: Row, folders: Folders, settings: Mapping[str, Any], check: bool) -> Row:
    """Return the row with what the step adds, or marked as failed."""
    if row["status"] == "failed":
        return row
    try:
        if check:
            check_there(row["path"], row["size"])
        return row | {name: _text(value) for name, value in step.work(row, folders, settings).items()}
    except ScanError as error:
        reason = str(error)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        if stop := fault(error, row["scan_id"]):
            raise stop from error
        traceback.print_exc()
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        reason = f"{type(error).__name__}: {first_line}"
    print(f"{step.name}: {row['scan_id']} failed: {reason}", file=sys.stderr, flush=True)
    return row | {"status": "failed", "step": step.name, "reason": reason}


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
