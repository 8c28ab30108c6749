"""What a kind of input says: how a cohort's files become arrays of its store, and how they are checked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from neuropeft.files import MISSING
from neuropeft.store import pool

Row = dict[str, str]
# Bright colours of Paul Tol's "bright" scheme, which the colour-blind can tell apart, on grey.
OUTLINES = ("#66ccee", "#ccbb44", "#ee6677", "#228833")


class Folders(NamedTuple):
    """Where the files of a chunk's scans go."""

    derivatives: Path  # BIDS-derivatives folder of the cohort, which stays
    # what later steps of the chunk read; it is deleted after the last one. None if there are no such files
    temporary: Path | None = None

    def scan(self, row: Row) -> Path:
        """Return the temporary image of a scan, uncompressed: compressing takes longer than some steps."""
        assert self.temporary is not None, "the rule of a kind that has such images gives their folder"
        return self.temporary / f"{row['scan_id']}.nii"

    def derivative(self, row: Row, suffix: str) -> Path:
        """Return where a derivative of a scan lies: sub-X/[ses-Y/]anat/{scan_id}_{suffix}."""
        session = "" if row["session"] == MISSING else f"ses-{row['session']}"
        return self.derivatives / f"sub-{row['subject']}" / session / "anat" / f"{row['scan_id']}_{suffix}"


@dataclass(frozen=True)
class Step:
    """A step, in which a rule takes every scan of a chunk further; see `steps.run_step`.

    Attributes:
        name: its name in tables, which its chunk table has, too.
        work: (row, folders, settings) -> what it adds to the row. It raises `ScanError` where a scan cannot
            be processed; anything else that no fault of a disk or machine explains counts as that, too.
        adds: the columns that it adds to its chunk table. The first step gives `raw_sha1`, by which a file
            is known again that comes under two names.
    """

    name: str
    work: Callable[[Row, Folders, Mapping[str, Any]], Mapping[str, str | float]]
    adds: tuple[str, ...] = ()


class Number(NamedTuple):
    """A number of a scan, a column of the last chunk table, that says whether it was prepared well."""

    label: str  # how it is written
    low: float  # below this it is flagged in any cohort ...
    high: float  # ... and above this
    low_only: bool = False  # whether only low values count as outliers of a cohort
    drawn: bool = True  # whether its distribution says anything; tables have it anyway


class OwnGrid(NamedTuple):
    """Maps of a scan, and its label map, on the grid of its file."""

    maps: np.ndarray  # float32 [n, *S]
    labels: np.ndarray  # uint8 [*S]
    voxel_mm: list[float]  # edges of a voxel, one for each axis; 1 of a pixel


class InputKind(ABC):
    """A kind of input, without state.

    Its settings say its steps, its dimensions and what it provides: the run table reads them without numpy.
    """

    numbers: ClassVar[Mapping[str, Number]]  # what QC shows of every scan, by column
    name: ClassVar[str]  # of the kind, if its scans may have label maps
    # columns of its last chunk table by which label maps come back to the grid of a file
    label_columns: ClassVar[tuple[str, ...]]
    label_suffix: ClassVar[str]  # of files of label maps
    # the column of `numbers` by which the worst of equally conspicuous scans is found: the lowest
    fit: ClassVar[str]
    fit_label: ClassVar[str]  # what captions call it
    legend: ClassVar[str]  # what QC pictures show, a sentence or two
    shown: ClassVar[int] = 6  # scans in each of two QC pictures

    @abstractmethod
    def array(self, row: Row, size: int) -> np.ndarray:
        """Return the array [channels, *size] of a scan, from its row of the last chunk table.

        Raises:
            UserError: a file that a step wrote cannot be read.
        """

    def label_map(self, row: Row, size: int) -> np.ndarray | None:
        """Return the label map `dseg` of a scan on the grid of its array, uint8 [*size]; None if it has none.

        Raises:
            UserError: a file that a step wrote cannot be read.
        """
        return None

    def to_own_grid(self, row: Row, maps: np.ndarray) -> OwnGrid:
        """Bring maps of a scan that has a label map to the grid of its file.

        Args:
            row: of its store.
            maps: float32 [n, *size], on the grid of its array.

        Raises:
            UserError: a file that a step wrote cannot be read.
        """
        raise NotImplementedError

    def write_label_map(self, row: Row, labels: np.ndarray, path: Path) -> None:
        """Write a label map, uint8, on the grid of a scan's file; `label_suffix` is added to the path."""
        raise NotImplementedError

    def signature(self, array: np.ndarray) -> np.ndarray:
        """Return what tells a stored array from those of other people, which `leaks` compares.

        Args:
            array: [channels, *size] as it is stored.

        Returns:
            float32 [channels * POOLED_SIZE^dims] of mean 0 and norm 1, whose products are correlations.
        """
        return standard(pool(array)).astype(np.float32)

    @abstractmethod
    def montage(self, rows: Mapping[str, Row]) -> Any:
        """Draw scans below their captions, none with a face; return a matplotlib figure.

        Args:
            rows: {caption: row of the last chunk table}.
        """


def outline(axis: Any, labels: np.ndarray, values: list[int]) -> None:
    """Draw the borders of each label of a slice; each of the scan's `values` has its colour in all slices."""
    for number, value in enumerate(values):
        if (inside := labels == value).any():
            axis.contour(inside, [0.5], colors=OUTLINES[number % len(OUTLINES)], linewidths=0.8)


def standard(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and norm 1."""
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-12)
