"""Leaks: the same person or the same image on two sides, which makes every score too good.

Names are checked when a split is read. Images are checked here, once they are packed: a scan that was filed
under two names has the same voxels, by their hash, or was stored anew and looks the same once it is prepared.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuropeft.cohorts.splits import TEST, ZERO_SHOT, held_out_subjects, read_split, split_digest
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.grouping import grouped
from neuropeft.store import SIGNATURES

PRETRAINING = "pretraining"
REPORT_COLUMNS = ("split", "sha256", "cohort", "side", "scans")
BLOCK = 1024  # scans whose correlations with another side are held at a time


class Image(NamedTuple):
    """A packed scan, the side that it is on, and by what it is known: its voxels' SHA-1 and its signature."""

    scan_id: str
    side: str
    cohort: str
    raw_sha1: str
    signature: np.ndarray


def check_leaks(
    split: Path, stored: Path, labels: Path | None, zero_shot: Path | None, out: Path, same: float
) -> None:
    """Check that no subject and no image is on two sides of a split, or in a zero-shot cohort besides.

    `stored` is scans.tsv of the training cohort's store; `labels` and `zero_shot` are of a zero-shot cohort,
    None to check the split alone. `same` is the correlation of two signatures above which they are of one
    scan. How many scans of which side were compared is written to `out`.

    Raises:
        UserError: a subject or an image is on two sides.
    """
    images = _split_images(split, stored)
    if labels is not None and zero_shot is not None:
        images += _labelled_images(labels, zero_shot)
    _refuse_pairs(split, images, same)
    _report(split, images, out)


def check_pretraining(
    tested: Path, stored: Path, pretrained: Path, held_out: Sequence[Path], out: Path, same: float
) -> None:
    """Check that no image that a task tests on was pretrained on.

    `tested` is a split, of which the test side is tested, or the labels in a zero-shot cohort; `stored` is
    scans.tsv of the store that it is about, and `pretrained` that of the one that is pretrained on, but for
    the test subjects of the splits `held_out`. `same` and `out` are as in `check_leaks`.

    Raises:
        UserError: an image is on both sides.
    """
    is_split = "side" in next(iter(read_tsv(tested)), {})
    images = _split_images(tested, stored) if is_split else _labelled_images(tested, stored)
    images = [image for image in images if image.side in (TEST, ZERO_SHOT)]
    left_out = held_out_subjects(map(read_split, held_out))
    rows = [row for row in read_tsv(pretrained) if row["subject"] not in left_out]
    images += _images(pretrained, {row["scan_id"]: PRETRAINING for row in rows})
    _refuse_pairs(tested, images, same)
    _report(tested, images, out)


def find_pairs(images: Iterable[Image], same: float) -> list[tuple[Image, Image]]:
    """Return the pairs of images that are one and lie on two sides, under whatever name."""
    sides = grouped(images, lambda image: image.side)
    return [
        (one[i], other[j])
        for one, other in itertools.combinations(sides.values(), 2)
        for i, j in sorted({*_same_voxels(one, other), *_same_looks(one, other, same)})
    ]


def _same_voxels(one: Sequence[Image], other: Sequence[Image]) -> Iterator[tuple[int, int]]:
    places = {image.raw_sha1: i for i, image in enumerate(one) if image.raw_sha1 != MISSING}
    yield from ((places[image.raw_sha1], j) for j, image in enumerate(other) if image.raw_sha1 in places)


def _same_looks(one: Sequence[Image], other: Sequence[Image], same: float) -> Iterator[tuple[int, int]]:
    ours, theirs = (np.stack([image.signature for image in side]) for side in (one, other))
    yield from alike(ours, theirs, same)


def alike(one: np.ndarray, other: np.ndarray, same: float) -> Iterator[tuple[int, int]]:
    """Yield the places of signatures [n, f] and [m, f] whose correlation is above `same`, in pairs."""
    for start in range(0, len(one), BLOCK):
        found = np.argwhere(one[start : start + BLOCK] @ other.T > same)
        yield from ((start + int(i), int(j)) for i, j in found)


def _split_images(split: Path, stored: Path) -> list[Image]:
    return _images(stored, {row["scan_id"]: row["side"] for row in read_split(split)})


def _labelled_images(labels: Path, stored: Path) -> list[Image]:
    return _images(stored, {row["scan_id"]: ZERO_SHOT for row in read_tsv(labels)})


def _images(stored: Path, side_of: Mapping[str, str]) -> list[Image]:
    """Return the packed scans that are on a side."""
    cohort, signatures = stored.parents[1].name, np.load(stored.with_name(SIGNATURES), mmap_mode="r")
    return [
        Image(row["scan_id"], side_of[row["scan_id"]], cohort, row.get("raw_sha1", MISSING), signature)
        for row, signature in zip(read_tsv(stored), signatures, strict=True)
        if row["scan_id"] in side_of
    ]


def _refuse_pairs(checked: Path, images: Sequence[Image], same: float) -> None:
    pairs = find_pairs(images, same)
    if not pairs:
        return
    one, other = pairs[0]
    more = f" ({len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
    fix = (
        "give both the same subject or remove one of them; `neuropeft group-duplicates` does so for 2D images"
        if one.cohort == other.cohort
        else "remove it from one of the two"
    )
    raise UserError(
        f"{checked}: {one.scan_id} of cohort {one.cohort} ({one.side}) and {other.scan_id} of {other.cohort} "
        f"({other.side}) hold the same image{more}; {fix}"
    )


def _report(checked: Path, images: Sequence[Image], out: Path) -> None:
    digest = split_digest(checked)
    counts = Counter((image.cohort, image.side) for image in images)
    rows = [
        {"split": checked, "sha256": digest, "cohort": cohort, "side": side, "scans": scans}
        for (cohort, side), scans in sorted(counts.items())
    ]
    write_tsv(out, rows, REPORT_COLUMNS)
