"""Reading a cohort's store: its volumes, memory-mapped, and which scan each of them is."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropeft.errors import UserError
from neuropeft.files import read_tsv

# Beside the volumes: what `leaks` compares, float32 [scans, length], see `InputKind.signature`.
SIGNATURES = "signatures.npy"
LABEL_MAPS = "labels.npy"  # uint8 [scans, *size], of a cohort whose scans have label maps
POOLED_SIZE = 10  # voxels along each edge after mean pooling


@dataclass(frozen=True)
class Store:
    """A cohort's scans as arrays.

    `volumes` is a read-only memory map, float16 [scans, channels, *size]; row i is the scan `scan_ids[i]`,
    and `rows[i]` holds its columns of scans.tsv as text.
    """

    path: Path
    volumes: np.ndarray
    rows: list[dict[str, str]]

    @cached_property
    def scan_ids(self) -> list[str]:
        """Return the scans in the order of the volumes."""
        return [row["scan_id"] for row in self.rows]

    @cached_property
    def labels(self) -> np.ndarray:
        """Return the label maps, a read-only memory map, uint8 [scans, *size]; zeros of a scan without one.

        Raises:
            UserError: the cohort has none, or the file is damaged.
        """
        path = self.path / LABEL_MAPS
        try:
            labels: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot open {path}: {error}; start the workflow again, which makes it anew"
            ) from error
        if labels.shape != (len(self.rows), *self.volumes.shape[2:]):
            raise UserError(
                f"{path} has shape {labels.shape}, volumes.npy {self.volumes.shape}; start the workflow "
                "again, which makes both anew"
            )
        return labels

    def hashes(self, scan_ids: Iterable[str]) -> list[str]:
        """Return the SHA-1 of each scan's volume, which stays the same when the store is packed anew."""
        return [self.rows[self.index_of(scan_id)]["sha1"] for scan_id in scan_ids]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {scan_id: index for index, scan_id in enumerate(self.scan_ids)}

    def index_of(self, scan_id: str) -> int:
        """Return the row of a scan.

        Raises:
            UserError: the store does not hold it.
        """
        try:
            return self._positions[scan_id]
        except KeyError:
            raise UserError(
                f"{self.path} does not hold the scan {scan_id}; excluded.tsv in the folder above says why"
            ) from None


def open_store(path: str | Path) -> Store:
    """Open the store in the folder `path`, which holds volumes.npy and scans.tsv.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    path = Path(path)
    rows = read_tsv(path / "scans.tsv")
    try:
        volumes = np.load(path / "volumes.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot open {path / 'volumes.npy'}: {error}; start the workflow again, which makes it anew"
        ) from error
    if volumes.ndim not in (4, 5) or len(volumes) != len(rows):
        raise UserError(
            f"{path} is damaged: volumes.npy has shape {volumes.shape}, scans.tsv {len(rows)} rows; "
            "start the workflow again, which makes both anew"
        )
    return Store(path, volumes, rows)


def pool(array: NDArray[Any], cells: int = POOLED_SIZE) -> NDArray[np.float64]:
    """Mean-pool an array [channels, *size] to [channels * cells^dims]."""
    pooled = array.astype(np.float64)
    for axis, size in list(enumerate(array.shape))[1:]:
        edges = np.linspace(0, size, cells + 1).astype(int)
        widths = np.diff(edges).reshape([-1 if other == axis else 1 for other in range(array.ndim)])
        pooled = np.add.reduceat(pooled, edges[:-1], axis=axis) / widths
    return pooled.ravel()
