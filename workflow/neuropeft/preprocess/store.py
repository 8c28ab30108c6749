"""Packing a cohort's preprocessed scans into its store, and listing those that are left out."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha1
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neuropeft.errors import UserError
from neuropeft.files import atomic_path, read_tsv, write_tsv
from neuropeft.preprocess.io import read_own
from neuropeft.preprocess.measures import NUMBERS, signature
from neuropeft.preprocess.resample import to_model_grid
from neuropeft.progress import track
from neuropeft.store import SIGNATURES

EXCLUDED_COLUMNS = ("scan_id", "subject", "session", "path", "step", "reason")
STORE_COLUMNS = ("row", "scan_id", "subject", "session", *NUMBERS, "sha1", "raw_sha1")


def list_excluded(tables: Iterable[str | Path], out: str | Path) -> None:
    """Write the scans of a cohort that failed, with the step and the reason, sorted by scan_id.

    Args:
        tables: the cohort's chunk tables after the last step.
        out: excluded.tsv.
    """
    write_tsv(out, [row for row in read_chunks(tables) if row["status"] == "failed"], EXCLUDED_COLUMNS)


def read_chunks(tables: Iterable[str | Path]) -> list[dict[str, str]]:
    """Return the rows of all chunk tables of a cohort, sorted by scan_id."""
    return sorted((row for table in tables for row in read_tsv(table)), key=lambda row: row["scan_id"])


def pack(
    tables: Sequence[str | Path],
    excluded: str | Path,
    volumes: str | Path,
    scans: str | Path,
    *,
    max_excluded_share: float,
    size: int = 80,
) -> None:
    """Write the store of a cohort: all scans that did not fail, z-scored, in the order of their scan_ids.

    Args:
        tables: the cohort's chunk tables after the last step.
        excluded: the list that `list_excluded` wrote; errors name it.
        volumes: .npy file to write, float16 [scans, size, size, size].
        scans: .tsv file to write, a row per volume, its QC numbers and the hashes of its bytes and its scan.
        max_excluded_share: largest share of the scans that may have failed.
        size: edge of the cube in voxels.

    Raises:
        UserError: too many scans failed, the disk is too small, or a preprocessed scan cannot be read.
    """
    rows = read_chunks(tables)
    kept = [row for row in rows if row["status"] == "ok"]
    _check_share(rows, kept, max_excluded_share, excluded)
    images = (read_own(row["preproc"]) for row in track(kept, len(kept), "packing"))
    cubes = (to_model_grid(np.asarray(image.dataobj), size) for image in images)
    hashes = write_volumes(volumes, cubes, (len(kept), size, size, size))
    stored = [
        {**row, "row": number, "sha1": digest}
        for number, (row, digest) in enumerate(zip(kept, hashes, strict=True))
    ]
    write_tsv(scans, stored, STORE_COLUMNS)


def write_volumes(
    path: str | Path, cubes: Iterable[np.ndarray], shape: tuple[int, int, int, int]
) -> list[str]:
    """Write the volumes of a store, one at a time, and beside them their signatures, see `measures`.

    Args:
        path: .npy file to write, float16; the signatures go to `store.SIGNATURES` in its folder.
        cubes: the volumes; as many and as large as `shape` says.
        shape: of the whole array.

    Returns:
        The SHA-1 of each volume's bytes.

    Raises:
        UserError: the disk is too small.
    """
    _check_space(Path(path), 2 * int(np.prod(shape, dtype=np.int64)))
    # Written front to back as a plain file: running out of disk is then an error, on a memory map a crash.
    with atomic_path(path) as partial, partial.open("wb") as stream:
        header = {"descr": np.dtype("<f2").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        written = list(_write_each(stream, cubes))
    with atomic_path(Path(path).with_name(SIGNATURES)) as partial:
        np.save(partial, np.array([signature for _, signature in written]))
    return [digest for digest, _ in written]


def _write_each(stream: BinaryIO, cubes: Iterable[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for cube in cubes:
        volume = cube.astype("<f2")
        content = volume.tobytes()
        stream.write(content)
        yield sha1(content, usedforsecurity=False).hexdigest(), signature(volume)


def _check_share(rows: list, kept: list, max_share: float, excluded: str | Path) -> None:
    failed = len(rows) - len(kept)
    if kept and failed / len(rows) <= max_share:
        return
    reasons = Counter(row["step"] for row in rows if row["status"] == "failed")
    where = ", ".join(f"{count} at {step}" for step, count in reasons.most_common())
    raise UserError(
        f"{failed} of {len(rows)} scans could not be preprocessed ({where}), more than "
        f"`preprocessing.max_excluded_share` {max_share:g} allows; see {excluded} for the reasons, fix or "
        "remove these scans or raise the share"
    )


def _check_space(volumes: Path, needed: int) -> None:
    volumes.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(volumes.parent).free
    if needed > free:
        raise UserError(
            f"{volumes} needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left; free some space"
        )
