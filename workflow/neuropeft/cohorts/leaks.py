"""Leaks: the same person or the same image on two sides, which makes every score too good.

Names are checked when a split is read. Images are checked here, once they are packed: a scan that was filed
under two names is preprocessed to the same volume, and only the volumes tell.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuropeft.cohorts.splits import read_split, split_digest
from neuropeft.errors import UserError
from neuropeft.files import write_tsv
from neuropeft.progress import track

REPORT_COLUMNS = ("split", "sha256", "compared_with", "scans", "identical")


class Leak(NamedTuple):
    """Two scans that hold the same image."""

    one: str
    one_side: str
    other: str
    other_side: str


def check_leaks(splits: Sequence[Path], store: Path, zero_shot: Sequence[Path], out: Path) -> None:
    """Check the splits of a task against the packed volumes, and write what was compared.

    Args:
        splits: the task's splits, one per seed.
        store: `volumes.npy` of the training cohort, beside its `scans.tsv`.
        zero_shot: files of the zero-shot cohorts' stores.
        out: table to write, with REPORT_COLUMNS.

    Raises:
        UserError: a subject or an image is on two sides.
    """
    digests = store_digests(store.parent)
    others = {folder: store_digests(folder) for folder in sorted({path.parent for path in zero_shot})}
    report = []
    for path in splits:
        rows = read_split(path)
        compared: dict[str, list[Leak]] = {"itself": find_leaks(rows, digests)}
        for folder, other in others.items():
            compared[folder.parent.name] = find_shared(rows, digests, other)
        for name, leaks in compared.items():
            if leaks:
                raise UserError(_sentence(path, name, leaks))
            report.append(
                {
                    "split": path,
                    "sha256": split_digest(path),
                    "compared_with": name,
                    "scans": len(rows),
                    "identical": 0,
                }
            )
    write_tsv(out, report, REPORT_COLUMNS)


def store_digests(folder: Path) -> dict[str, str]:
    """Return a hash of every volume's bytes, by scan_id; reads the store in `folder` once."""
    from neuropeft.store import open_store

    store = open_store(folder)
    pairs = track(
        zip(store.scan_ids, store.volumes, strict=True), len(store.rows), f"hashing {folder.parent.name}"
    )
    return {scan_id: hashlib.sha1(volume, usedforsecurity=False).hexdigest() for scan_id, volume in pairs}


def find_leaks(rows: Sequence[Mapping[str, Any]], digests: Mapping[str, str]) -> list[Leak]:
    """Find images that are on two sides of a split, under whatever subject.

    Args:
        rows: rows of a split.
        digests: hash of the volume of each scan.
    """
    first: dict[str, Mapping[str, Any]] = {}
    leaks = []
    for row in rows:
        twin = first.setdefault(digests[row["scan_id"]], row)
        if twin["side"] != row["side"]:
            leaks.append(Leak(twin["scan_id"], twin["side"], row["scan_id"], row["side"]))
    return leaks


def find_shared(
    rows: Sequence[Mapping[str, Any]], digests: Mapping[str, str], other: Mapping[str, str]
) -> list[Leak]:
    """Find images of a split that are in another cohort too.

    Args:
        rows: rows of a split.
        digests: hash of the volume of each scan of the split's cohort.
        other: hash of the volume of each scan of a zero-shot cohort.
    """
    by_digest = {digest: scan_id for scan_id, digest in other.items()}
    twins = [(row, by_digest.get(digests[row["scan_id"]])) for row in rows]
    return [Leak(row["scan_id"], row["side"], twin, "zero-shot") for row, twin in twins if twin is not None]


def _sentence(split: Path, other: str, leaks: Sequence[Leak]) -> str:
    leak = leaks[0]
    more = f" ({len(leaks) - 1} more such pairs)" if len(leaks) > 1 else ""
    mend = (
        "give both the same subject or remove one of them"
        if other == "itself"
        else f"remove it from one of the cohorts, the other being {other}"
    )
    return (
        f"{split}: {leak.one} ({leak.one_side}) and {leak.other} ({leak.other_side}) hold the same "
        f"image{more}; {mend}"
    )
