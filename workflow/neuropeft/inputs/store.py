"""Packing a cohort's preprocessed scans into its store, and listing those that are left out."""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha1
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neuropeft.errors import UserError
from neuropeft.files import MISSING, atomic_path, write_tsv
from neuropeft.inputs.base import InputKind
from neuropeft.inputs.steps import read_chunks
from neuropeft.progress import track
from neuropeft.store import LABEL_MAPS, SIGNATURES

# What a store says of label maps, beside the kind's `label_columns`: their hash, and the kind of input.
LABEL_COLUMNS = ("label_sha1", "input")
EXCLUDED_COLUMNS = ("scan_id", "subject", "session", "path", "step", "reason")


def list_excluded(tables: Iterable[str | Path], out: str | Path) -> None:
    """Write the scans of a cohort that failed, with the step and the reason, sorted by scan_id.

    `tables` are those of the chunks after the last step.
    """
    write_tsv(out, [row for row in read_chunks(tables) if row["status"] == "failed"], EXCLUDED_COLUMNS)


def pack(
    kind: InputKind,
    tables: Sequence[str | Path],
    excluded: str | Path,
    volumes: str | Path,
    scans: str | Path,
    *,
    max_excluded_share: float,
    size: int,
) -> None:
    """Write the store of a cohort: all scans that did not fail, in the order of their scan_ids.

    Args:
        kind: of the cohort's input.
        tables: the cohort's chunk tables after the last step.
        excluded: the list that `list_excluded` wrote; errors name it.
        volumes: .npy file to write, float16 [scans, channels, *size].
        scans: .tsv file to write, a row per volume, its QC numbers and the hashes of its bytes and its scan.
            Where scans have label maps, these go to `store.LABEL_MAPS` beside the volumes, and LABEL_COLUMNS
            and the kind's `label_columns` are added.
        max_excluded_share: largest share of the scans that may have failed.
        size: edge of the arrays in voxels.

    Raises:
        UserError: too many scans failed, the disk is too small, or a preprocessed scan cannot be read.
    """
    rows = read_chunks(tables)
    kept = [row for row in rows if row["status"] == "ok"]
    _check_share(rows, kept, max_excluded_share, excluded)
    arrays = (kind.array(row, size) for row in track(kept, len(kept), "packing"))
    hashes = write_volumes(volumes, arrays, len(kept), kind.signature)
    stored = [
        {**row, "row": number, "sha1": digest}
        for number, (row, digest) in enumerate(zip(kept, hashes, strict=True))
    ]
    columns = ("row", "scan_id", "subject", "session", *kind.numbers, "sha1", "raw_sha1")
    path = Path(volumes).with_name(LABEL_MAPS)
    path.unlink(missing_ok=True)
    if any(row.get("dseg", MISSING) != MISSING for row in kept):
        shape = (len(kept), *np.load(volumes, mmap_mode="r").shape[2:])
        of_labels = write_labels(path, (kind.label_map(row, size) for row in kept), shape)
        stored = [
            row | {"label_sha1": digest, "input": kind.name}
            for row, digest in zip(stored, of_labels, strict=True)
        ]
        columns += LABEL_COLUMNS + kind.label_columns
    write_tsv(scans, stored, columns)


def write_volumes(
    path: str | Path,
    arrays: Iterable[np.ndarray],
    number: int,
    signature: Callable[[np.ndarray], np.ndarray],
) -> list[str]:
    """Write the arrays of a store, one at a time, and beside them their signatures.

    Args:
        path: .npy file to write, float16; the signatures go to `store.SIGNATURES` in its folder.
        arrays: [channels, *size] each, of one shape.
        number: how many they are, at least 1.
        signature: of an array as it is stored, see `InputKind.signature`.

    Returns:
        The SHA-1 of each array's bytes.

    Raises:
        UserError: the disk is too small.
    """
    coming = iter(arrays)
    first = next(coming)
    shape = (number, *first.shape)
    _check_space(Path(path), 2 * int(np.prod(shape, dtype=np.int64)))
    # Written front to back as a plain file: running out of disk is then an error, on a memory map a crash.
    with atomic_path(path) as partial, partial.open("wb") as stream:
        header = {"descr": np.dtype("<f2").str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        written = list(_write_each(stream, itertools.chain([first], coming), first.shape, signature))
    assert len(written) == number, f"{len(written)} arrays came, not {number}"
    with atomic_path(Path(path).with_name(SIGNATURES)) as partial:
        np.save(partial, np.array([signature for _, signature in written]))
    return [digest for digest, _ in written]


def write_labels(path: Path, maps: Iterable[np.ndarray | None], shape: tuple[int, ...]) -> list[str]:
    """Write the label maps of a store, one at a time; zeros for a scan without one.

    Args:
        path: .npy file to write, uint8 of this shape.
        maps: of each scan, [*size]; None if it has none.
        shape: [scans, *size].

    Returns:
        The SHA-1 of each map's bytes; MISSING where there is none.
    """
    digests = []
    with atomic_path(path) as partial, partial.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for one in maps:
            content = np.zeros(shape[1:], np.uint8).tobytes() if one is None else one.tobytes()
            stream.write(content)
            digests.append(MISSING if one is None else sha1(content, usedforsecurity=False).hexdigest())
    return digests


def _write_each(
    stream: BinaryIO,
    arrays: Iterable[np.ndarray],
    shape: tuple[int, ...],
    signature: Callable[[np.ndarray], np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    for array in arrays:
        assert array.shape == shape, f"an array is {array.shape}, the others {shape}"
        stored = array.astype("<f2")
        content = stored.tobytes()
        stream.write(content)
        yield sha1(content, usedforsecurity=False).hexdigest(), signature(stored)


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
