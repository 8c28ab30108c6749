"""Images that look the same, such as a frame with and without calipers, become those of one subject."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuropeft.cohorts.leaks import alike
from neuropeft.cohorts.readers import Record, read_cohort
from neuropeft.config import Cohort
from neuropeft.config.inputs import Image as Settings
from neuropeft.files import expanded, write_tsv
from neuropeft.inputs.image import KIND, into_square
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.picture import read_picture
from neuropeft.progress import track
from neuropeft.tasks.values import is_missing


def group_duplicates(table: Path, out: Path, size: int) -> tuple[int, int]:
    """Write a table of images anew, in which images that look the same have the same subject.

    They are those that the check for leaks refuses on two sides of a split. Images of one subject stay
    together, and who looks like any of them joins them. Images that cannot be read keep their subject.

    Args:
        table: TSV or CSV of a cohort of input `image`.
        out: TSV to write: the same rows, with absolute paths.
        size: `preprocessing.size` of the configuration; more images look the same in smaller squares.

    Returns:
        How many subjects there were, and how many there are.

    Raises:
        UserError: The table cannot be read.
    """
    records = read_cohort(table.stem, Cohort(table=str(table), input=Settings()))
    first: dict[str, int] = {}
    pairs = [(first.setdefault(record.subject, place), place) for place, record in enumerate(records)]
    group = _groups(len(records), pairs + _lookalikes(records, size))
    subject = {number: records[place].subject for place, number in reversed(list(enumerate(group)))}
    rows = [
        {**record.labels, "path": record.path, "subject": subject[number], **_mask(record, table.parent)}
        for record, number in zip(records, group, strict=True)
    ]
    write_tsv(out, rows, list(rows[0]))
    return len(first), len(subject)


def _mask(record: Record, root: Path) -> dict[str, str]:
    mask = record.labels.get("mask", "")
    return {} if is_missing(mask) else {"mask": os.path.abspath(root / expanded(mask))}


def _lookalikes(records: Sequence[Record], size: int) -> list[tuple[int, int]]:
    """Return the places of images that look the same, in pairs."""
    places, signatures = [], []
    for place, record in enumerate(track(records, len(records), "images")):
        try:
            square, _ = into_square(read_picture(record.path), size, "pad")
        except ScanError:
            continue  # the workflow excludes it, and says why
        places.append(place)
        signatures.append(KIND.signature(np.atleast_3d(square).transpose(2, 0, 1).astype(np.float16)))
    known = np.array(signatures)
    return [(places[i], places[j]) for i, j in alike(known, known, Settings.same)]


def _groups(number: int, pairs: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """Return the group of each of so many images [number]: images of a pair, and of a chain, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.array(pairs).T
    joined = coo_array((np.ones(len(pairs)), (one, other)), shape=(number, number))
    return np.asarray(connected_components(joined, directed=False)[1])
