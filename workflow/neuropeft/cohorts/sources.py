"""What preprocessing is made from: raw scans and masks by their content, settings and code."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from neuropeft import numerics
from neuropeft.files import MISSING, read_tsv
from neuropeft.records import Digests, Record, Stamp, digest, file_digest, stamp, write_record

# The modules of the four steps; `preprocess.steps` imports them all.
STEPS = ("n4", "skullstrip", "register", "template", "resample", "measures")
KINDS = {"scan": ("path", "size", "mtime_ns"), "mask": ("mask", "mask_size", "mask_mtime_ns")}
NOT_THERE = ("-1", MISSING)  # as the index has the size of a file that is not there, and of no file

Row = Mapping[str, str]


@cache
def _version(*modules: str, alone: str | None = None) -> str:
    return numerics.version(*modules, alone=alone)


def chunk_sources(method: str) -> dict[str, str]:
    """Return settings and code that take scans through the four steps; `method` is how brains are found."""
    code = _version(*(f"preprocess.{step}" for step in STEPS), alone="preprocess.steps")
    return {"code": code, "method": method}


def store_sources(
    size: int, max_excluded_share: float, chunks: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    """Return what makes a store of preprocessed scans: code, settings, and which scans the index has."""
    code, scans = (
        _version("preprocess.store"),
        sorted(row["scan_id"] for rows in chunks.values() for row in rows),
    )
    return {"code": code, "size": size, "max_excluded_share": max_excluded_share, "scans": digest(scans)}


def synthetic_sources(volumes: int, seed: int, size: int) -> dict[str, Any]:
    """Return settings and code that make the store of a synthetic cohort."""
    return {"code": _version("cohorts.synthetic_store"), "volumes": volumes, "seed": seed, "size": size}


def record_chunk(table: Path, index: Path, chunk: str, method: str) -> None:
    """Write down, beside the last table of a chunk, what it was made from, raw files included.

    Args:
        table: the table.
        index: scans.tsv of the cohort.
        chunk: name of the chunk.
        method: how brains were found.
    """
    rows = [row for row in read_tsv(index) if row["chunk"] == chunk]
    files = {
        row["scan_id"]: [_file(*(row[name] for name in names)) for names in KINDS.values()] for row in rows
    }
    write_record([table], {**chunk_sources(method), "files": files})


def _file(path: str, size: str, mtime_ns: str) -> tuple[str, Stamp] | None:
    """Return SHA-256 and stamp of a file; None if it is not there, or is not any more as it was indexed."""
    if size in NOT_THERE:
        return None
    try:
        at = stamp(Path(path))
    except OSError:
        return None
    return (file_digest(path), at) if at[:2] == [int(size), int(mtime_ns)] else None


def changed_file(record: Record, rows: Sequence[Row], digests: Digests) -> str | None:
    """Return which raw scan or mask of a chunk is not what it was made from; None if all are.

    Args:
        record: what `record_chunk` wrote.
        rows: rows of the index now.
        digests: reads a file that has been touched, or moved to another disk.
    """
    recorded = record.made_from["files"]
    if other := recorded.keys() ^ {row["scan_id"] for row in rows}:
        return f"{min(other)} has come or gone"
    for row in rows:
        for (kind, names), before in zip(KINDS.items(), recorded[row["scan_id"]], strict=True):
            path, size, _ = (row[name] for name in names)
            if (before is None) != (size in NOT_THERE):
                return f"the {kind} of {row['scan_id']} has come or gone"
            if before is not None and not _is_same(Path(path), before, digests):
                return f"the {kind} of {row['scan_id']} has changed"
    return None


def _is_same(path: Path, before: tuple[str, Stamp], digests: Digests) -> bool:
    sha256, at = before
    try:
        return stamp(path) == at or digests.of(path) == sha256
    except OSError:
        return False
