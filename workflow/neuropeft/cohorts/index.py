"""The scan index: every scan of a cohort, with the state of its file and its chunk."""

import itertools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuropeft.cohorts.chunks import assign_chunks
from neuropeft.cohorts.readers import BIDS_PATTERN, Labels, Record, read_cohort, simulated_root
from neuropeft.config import Cohort
from neuropeft.errors import FAULTS, UserError, fault
from neuropeft.files import MISSING, expanded, format_tsv, write_text
from neuropeft.tasks.values import is_missing

INDEX_COLUMNS = (
    *("scan_id", "subject", "session", "path", "size", "mtime_ns"),
    *("mask", "mask_size", "mask_mtime_ns", "chunk"),
)


@dataclass(frozen=True)
class Scan:
    """A scan of a cohort.

    `subject` and `session` are without `sub-` and `ses-`. `size` is in bytes, -1 when the file is not there
    or may not be read; `mtime_ns` in nanoseconds. A given mask has both, too. `labels` holds the tables' text
    by column; `file` tells one file on disk from another whatever it is called, None when it is not there.
    """

    scan_id: str
    subject: str
    session: str | None
    path: str
    size: int
    mtime_ns: int
    mask: str | None
    mask_size: int | None
    mask_mtime_ns: int | None
    chunk: str
    labels: Labels
    file: tuple[int, int] | None


def index_cohort(name: str, cohort: Cohort, scans_per_job: int) -> list[Scan]:
    """Index a cohort's scans, sorted by scan_id.

    A listed scan whose file is missing is kept with size -1: preprocessing excludes it with that reason. The
    scans of a simulated cohort, which the workflow makes, have size and time 0.

    Raises:
        UserError: the cohort has no scan or none that is there, two scans of one name, or a table that
            contradicts itself.
    """
    records = sorted(read_cohort(name, cohort), key=lambda record: record.scan_id)
    if not records:
        where = f"{cohort.bids}/{BIDS_PATTERN}" if cohort.bids else cohort.table
        raise UserError(f"cohort {name!r} has no scan: nothing matches {where}; check `cohorts.{name}`")
    for one, other in itertools.pairwise(records):
        if one.scan_id == other.scan_id:
            raise UserError(
                f"cohort {name!r} has two scans {one.scan_id}, {one.path} and {other.path}; keep one, or "
                f"list the scans you mean in a `cohorts.{name}.table`"
            )
    chunks = assign_chunks([(record.scan_id, record.subject) for record in records], scans_per_job)
    base = cohort.bids or (os.path.dirname(cohort.table) if cohort.table else simulated_root(name))
    state = _state_to_be if cohort.simulated else _file_state
    scans: list[Scan] = []
    for record in records:
        size, mtime_ns, file = state(record.path)
        mask = _mask(name, cohort, base, record)
        mask_size, mask_mtime_ns, _ = state(mask) if mask else (None, None, None)
        of_mask, chunk = (mask, mask_size, mask_mtime_ns), chunks[record.scan_id]
        scans.append(Scan(*record[:4], size, mtime_ns, *of_mask, chunk, record.labels, file))
    if all(scan.size == -1 for scan in scans):
        raise UserError(
            f"cohort {name!r} has no scan that may be read: of its {len(scans)} scans the first would be "
            f"{scans[0].path}; fix `cohorts.{name}`"
        )
    if cohort.brain_masks and all(scan.mask_size == -1 for scan in scans):
        raise UserError(
            f"cohort {name!r} has no brain mask: of its {len(scans)} scans the first would have "
            f"{scans[0].mask}; fix `cohorts.{name}.brain_masks`"
        )
    return scans


def index_row(scan: Scan) -> dict[str, str]:
    """Return a scan's row of the index, as it is read back."""
    values = ((column, getattr(scan, column)) for column in INDEX_COLUMNS)
    return {column: MISSING if value is None else str(value) for column, value in values}


def write_index(path: Path, scans: Sequence[Scan]) -> bool:
    """Write the index unless it already says the same; return whether it was written."""
    text = format_tsv(map(index_row, scans), INDEX_COLUMNS)
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    write_text(path, text)
    return True


def _file_state(path: str) -> tuple[int, int, tuple[int, int] | None]:
    """Return size, time and identity of a file, as `Scan` has them."""
    try:
        state = os.stat(path)
    except OSError as error:
        if error.errno in FAULTS and not isinstance(error, PermissionError):
            raise fault(error, path) or error from error
        return -1, 0, None
    # Or a file that is made readable later would not count as changed.
    readable = stat.S_ISREG(state.st_mode) and os.access(path, os.R_OK)
    return state.st_size if readable else -1, state.st_mtime_ns, (state.st_dev, state.st_ino)


def _state_to_be(_path: str) -> tuple[int, int, None]:
    return 0, 0, None


def _mask(name: str, cohort: Cohort, base: str, record: Record) -> str | None:
    if (column := cohort.input.mask_column) is not None:
        value = record.labels.get(column, MISSING)
        return None if is_missing(value) else os.path.normpath(os.path.join(base, expanded(value)))
    if cohort.brain_masks is None:
        return None
    template = expanded(cohort.brain_masks)
    try:
        path = template.format(subject=record.subject, session=record.session or "", scan_id=record.scan_id)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(
            f"`cohorts.{name}.brain_masks` is {template!r}: only {{subject}}, {{session}} and {{scan_id}} "
            "may stand in braces"
        ) from error
    return os.path.normpath(os.path.join(base, path))
