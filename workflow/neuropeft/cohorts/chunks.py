"""Chunks: which scans one preprocessing job handles.

A chunk's membership follows from hashes of the subject and the scan alone. Their bits lead into a binary tree
whose leaves are the chunks; a leaf with more scans than a job takes splits in two. A new scan therefore
changes the leaf that it falls into and no other, and never reshuffles a cohort that has been preprocessed.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.files import MISSING, read_tsv
from neuropeft.grouping import grouped

DIGEST_COLUMNS = ("scan_id", "size", "mtime_ns", "mask_size", "mask_mtime_ns")  # wherever the files lie
# Bits of the subject, then bits of the scan. Few of the subject's are taken, because a chunk's name has all
# bits down to where the scans of one subject part, and file systems end names at 255 characters.
SUBJECT_BYTES = 4
SCAN_BYTES = 16


def assign_chunks(keys: Sequence[tuple[str, str]], scans_per_job: int) -> dict[str, str]:
    """Return the chunk of every scan.

    Args:
        keys: (scan_id, subject) of each scan; scan_ids are distinct.
        scans_per_job: largest number of scans in a chunk.

    Returns:
        {scan_id: chunk}; a chunk is `x` and the bits that lead to it, so a single chunk is `x`.
    """
    chunks: dict[str, str] = {}
    waiting = [("", [(_bits(scan_id, subject), scan_id) for scan_id, subject in keys])]
    while waiting:
        prefix, bucket = waiting.pop()
        if len(bucket) <= scans_per_job:
            chunks.update((scan_id, f"x{prefix}") for _, scan_id in bucket)
            continue
        for bit in "01":
            half = [member for member in bucket if member[0][len(prefix)] == bit]
            waiting.append((prefix + bit, half))
    return chunks


def chunk_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a chunk's rows: any scan or mask that comes, goes or is touched changes it."""
    lines = sorted("\t".join(_text(row[column]) for column in DIGEST_COLUMNS) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def by_chunk(rows: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Return the rows of an index by chunk."""
    return grouped(rows, lambda row: row["chunk"])


def read_chunks(results: Path, cohort: str) -> dict[str, list[dict[str, str]]]:
    """Return the index rows of each chunk of a cohort; do not change them, they are read once."""
    path = layout.SCANS.at(results, cohort=cohort)
    return _read_chunks(path, path.stat().st_mtime_ns if path.exists() else 0)


def chunk_tables(results: Path, cohort: str, step: str) -> list[Path]:
    """Return the table of every chunk of a cohort after a step of its preparation."""
    return tables_of(results, cohort, step, read_chunks(results, cohort))


def tables_of(results: Path, cohort: str, step: str, chunks: Iterable[str]) -> list[Path]:
    """Return the table of each of some chunks after a step, sorted."""
    place = layout.chunk_table(step)
    return [place.at(results, cohort=cohort, chunk=chunk) for chunk in sorted(chunks)]


@lru_cache(maxsize=64)
def _read_chunks(path: Path, _mtime_ns: int) -> dict[str, list[dict[str, str]]]:
    return by_chunk(read_tsv(path))


def _bits(scan_id: str, subject: str) -> str:
    head = hashlib.sha256(subject.encode()).digest()[:SUBJECT_BYTES]
    digest = head + hashlib.sha256(scan_id.encode()).digest()[:SCAN_BYTES]
    return f"{int.from_bytes(digest, 'big'):0{8 * len(digest)}b}"


def _text(value: object) -> str:
    return MISSING if value is None else str(value)
