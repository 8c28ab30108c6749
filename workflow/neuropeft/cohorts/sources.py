"""What prepared scans and stores are made from: raw scans and masks by their content, settings and code."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuropeft import inputs, numerics
from neuropeft.files import MISSING, read_tsv
from neuropeft.records import Digests, Record, Stamp, digest, file_digest, stamp, write_record

KINDS = {"scan": ("path", "size", "mtime_ns"), "mask": ("mask", "mask_size", "mask_mtime_ns")}
NOT_THERE = ("-1", MISSING)  # as the index has the size of a file that is not there, and of no file

Row = Mapping[str, str]


def chunk_sources(steps: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return code and settings that take scans through steps, {name: module}."""
    code = numerics.version("inputs.steps", *steps.values())
    return {"code": code, "settings": digest(dict(settings))}


def store_sources(
    kind: str, size: int, max_excluded_share: float, chunks: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    """Return what makes a store of prepared scans: code, settings, and which scans the index has."""
    scans = sorted(row["scan_id"] for rows in chunks.values() for row in rows)
    code = numerics.version("inputs.store", inputs.module_of(kind))
    return {"code": code, "size": size, "max_excluded_share": max_excluded_share, "scans": digest(scans)}


def synthetic_sources(volumes: int, seed: int, size: int) -> dict[str, Any]:
    """Return settings and code that make the store of a synthetic cohort."""
    return {
        "code": numerics.version("cohorts.synthetic_store"),
        "volumes": volumes,
        "seed": seed,
        "size": size,
    }


def record_chunk(table: Path, index: Path, sources: Mapping[str, str]) -> None:
    """Write down, beside the last table of a chunk, what it was made from, raw files included.

    `table` lies in a folder of the chunk's name; `index` is scans.tsv of the cohort.
    """
    rows = [row for row in read_tsv(index) if row["chunk"] == table.parent.name]
    files = {
        row["scan_id"]: [_file(*(row[name] for name in names)) for names in KINDS.values()] for row in rows
    }
    write_record([table], {**sources, "files": files})


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

    `rows` are those of the index now; `digests` reads a file that has been touched, or moved to another disk.
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


def raw_files(record: Record, rows: Sequence[Row]) -> Iterator[tuple[Path, Stamp]]:
    """Yield where the raw scans and masks of a chunk lie now, with the stamps that they had."""
    recorded = record.made_from.get("files", {})
    for row in rows:
        for (path, *_), before in zip(KINDS.values(), recorded.get(row["scan_id"], ()), strict=False):
            if before is not None:
                yield Path(row[path]), before[1]


def as_made(record: Record, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the rows of a chunk, with the size and time that its files had when it was made from them."""
    recorded, found = record.made_from.get("files", {}), []
    for row in rows:
        made = dict(row)
        for (_, *state), before in zip(KINDS.values(), recorded.get(row["scan_id"], ()), strict=False):
            if before is not None:
                made |= zip(state, map(str, before[1]), strict=False)
        found.append(made)
    return found


def _is_same(path: Path, before: tuple[str, Stamp], digests: Digests) -> bool:
    sha256, at = before
    try:
        return stamp(path) == at or digests.of(path) == sha256
    except OSError:
        return False
