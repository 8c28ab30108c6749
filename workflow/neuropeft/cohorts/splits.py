"""Splits by subject: who is trained on, who chooses the epoch, who is tested on."""

from collections.abc import Mapping, Sequence
from typing import Any

TRAIN, VALIDATION, TEST = "train", "val", "test"


def fraction_size(fraction: int, n_train: int) -> int:
    """Return how many of `n_train` training subjects `fraction` percent are, rounded up."""
    return -(-fraction * n_train // 100)


def take_fraction(rows: Sequence[Mapping[str, Any]], fraction: int) -> list[dict[str, Any]]:
    """Return the training rows of the first `fraction` percent of the training subjects.

    Args:
        rows: rows of a split: scan_id, subject, side, order, y.
        fraction: percent of the training subjects, 1 to 100; all scans of a subject come along.
    """
    train = [dict(row) for row in rows if row["side"] == TRAIN]
    size = fraction_size(fraction, len({row["subject"] for row in train}))
    return [row for row in train if int(row["order"]) < size]
