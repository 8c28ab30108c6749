"""Leaks: the same person or the same image on two sides, which makes every score too good.

Names are checked when a split is read. Images are checked here, once they are packed: a scan that was filed
under two names is preprocessed to the same volume, and only the volumes, whose hashes a store lists, tell.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from neuropeft.cohorts.splits import TEST, ZERO_SHOT, held_out_subjects, read_split, split_digest
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv

PRETRAINING = "pretraining"
REPORT_COLUMNS = ("split", "sha256", "cohort", "side", "scans")


class Image(NamedTuple):
    """A packed scan, by the SHA-1 of its volume, and the side that it is on."""

    sha1: str
    scan_id: str
    side: str
    cohort: str


def check_leaks(split: Path, stored: Path, labels: Path | None, zero_shot: Path | None, out: Path) -> None:
    """Check that no subject and no image is on two sides of a split, or in a zero-shot cohort besides.

    Args:
        split: a split of the task.
        stored: scans.tsv of the training cohort's store.
        labels: the task's labels in a zero-shot cohort; None checks the split alone.
        zero_shot: scans.tsv of that cohort's store.
        out: table to write: how many scans of which side were compared.

    Raises:
        UserError: a subject or an image is on two sides.
    """
    images = _split_images(split, stored)
    if labels is not None and zero_shot is not None:
        images += _labelled_images(labels, zero_shot)
    _refuse_twins(split, images)
    _report(split, images, out)


def check_pretraining(
    tested: Path, stored: Path, pretrained: Path, held_out: Sequence[Path], out: Path
) -> None:
    """Check that no image that a task tests on was pretrained on.

    Args:
        tested: a split of the task, of which the test side is tested, or its labels in a zero-shot cohort.
        stored: scans.tsv of the store of the cohort that `tested` is about.
        pretrained: scans.tsv of the store that is pretrained on.
        held_out: splits whose test subjects that pretraining leaves out.
        out: table to write: how many scans of which side were compared.

    Raises:
        UserError: an image is on both sides.
    """
    is_split = "side" in next(iter(read_tsv(tested)), {})
    images = _split_images(tested, stored) if is_split else _labelled_images(tested, stored)
    images = [image for image in images if image.side in (TEST, ZERO_SHOT)]
    left_out = held_out_subjects(map(read_split, held_out))
    rows = [row for row in read_tsv(pretrained) if row["subject"] not in left_out]
    images += [Image(row["sha1"], row["scan_id"], PRETRAINING, _cohort(pretrained)) for row in rows]
    _refuse_twins(tested, images)
    _report(tested, images, out)


def find_twins(images: Iterable[Image]) -> list[tuple[Image, Image]]:
    """Return the pairs of images that are one and lie on two sides, under whatever name."""
    first: dict[str, Image] = {}
    pairs = [(first.setdefault(image.sha1, image), image) for image in images]
    return [(one, other) for one, other in pairs if one.side != other.side]


def _split_images(split: Path, stored: Path) -> list[Image]:
    sha1 = _hashes(stored)
    rows = read_split(split)
    return [Image(sha1[row["scan_id"]], row["scan_id"], row["side"], _cohort(stored)) for row in rows]


def _labelled_images(labels: Path, stored: Path) -> list[Image]:
    sha1 = _hashes(stored)
    scans = [row["scan_id"] for row in read_tsv(labels) if row["scan_id"] in sha1]
    return [Image(sha1[scan], scan, ZERO_SHOT, _cohort(stored)) for scan in scans]


def _hashes(stored: Path) -> dict[str, str]:
    return {row["scan_id"]: row["sha1"] for row in read_tsv(stored)}


def _cohort(stored: Path) -> str:
    return stored.parents[1].name  # results/cohorts/{cohort}/store/scans.tsv


def _refuse_twins(checked: Path, images: Sequence[Image]) -> None:
    twins = find_twins(images)
    if not twins:
        return
    one, other = twins[0]
    more = f" ({len(twins) - 1} more such pairs)" if len(twins) > 1 else ""
    mend = (
        "give both the same subject or remove one of them"
        if one.cohort == other.cohort
        else "remove it from one of the two"
    )
    raise UserError(
        f"{checked}: {one.scan_id} of cohort {one.cohort} ({one.side}) and {other.scan_id} of {other.cohort} "
        f"({other.side}) hold the same image{more}; {mend}"
    )


def _report(checked: Path, images: Sequence[Image], out: Path) -> None:
    digest = split_digest(checked)
    counts = Counter((image.cohort, image.side) for image in images)
    rows = [
        {"split": checked, "sha256": digest, "cohort": cohort, "side": side, "scans": scans}
        for (cohort, side), scans in sorted(counts.items())
    ]
    write_tsv(out, rows, REPORT_COLUMNS)
