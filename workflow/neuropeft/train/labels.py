"""The scans and targets of a cell, from its split; the test side is dropped at once."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft.cohorts.splits import TRAIN, VALIDATION, first_rows, read_split, take_subset
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from neuropeft.subsets import Subset
from neuropeft.train.seeds import derive_seed

if TYPE_CHECKING:
    from neuropeft.tasks.base import TaskKind

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sides:
    """Rows of a split: all scans of the training subjects, one scan of each validation subject.

    `whole` is how many scans there would be to train on with all of the training subjects.
    """

    train: list[Row]
    validation: list[Row]
    whole: int


def stored_sessions(store_dir: str | Path) -> dict[str, str]:
    """Return the session of every scan that is in a store."""
    return {row["scan_id"]: row["session"] for row in read_tsv(Path(store_dir) / "scans.tsv")}


def read_sides(split_tsv: str | Path, subset: Subset, kind: "TaskKind", sessions: Mapping[str, str]) -> Sides:
    """Read a part of the training rows, and of the validation subjects each one's first scan.

    `sessions` are those of every stored scan; scans that are not stored are left out.

    Raises:
        UserError: The split is not valid, or none of the scans of a side is stored.
    """
    split = [row for row in read_split(split_tsv) if row["side"] in (TRAIN, VALIDATION)]
    task = Path(split_tsv).parent.name
    train, validation = (
        with_sessions(take_subset(split, subset, kind, side, task), sessions) for side in (TRAIN, VALIDATION)
    )
    for side, found in ((TRAIN, train), (VALIDATION, validation)):
        if not found:
            raise UserError(
                f"{split_tsv}: none of the {side} scans ({subset.label}) is in the store; "
                "preprocess the cohort of this split"
            )
    whole = len(with_sessions([row for row in split if row["side"] == TRAIN], sessions))
    return Sides(train, list(first_rows(validation).values()), whole)


def with_sessions(rows: Sequence[Row], sessions: Mapping[str, str]) -> list[Row]:
    """Return the rows of stored scans, their session added."""
    return [{**row, "session": sessions[row["scan_id"]]} for row in rows if row["scan_id"] in sessions]


def shuffled(sides: Sides, seed: int) -> Sides:
    """Return the rows with targets permuted among the subjects of a side: a control that must not learn."""
    train, validation = _permuted(sides.train, seed, TRAIN), _permuted(sides.validation, seed, VALIDATION)
    return Sides(train, validation, sides.whole)


def subject_weights(rows: Sequence[Row]) -> list[float]:
    """Return how much each scan counts, 1 on average: subjects count alike, however many scans they have."""
    scans = Counter(row["subject"] for row in rows)
    return [len(rows) / (len(scans) * scans[row["subject"]]) for row in rows]


def _permuted(rows: Sequence[Row], seed: int, side: str) -> list[Row]:
    targets = {subject: row["y"] for subject, row in first_rows(rows).items()}
    subjects = sorted(targets)
    sources = list(subjects)
    random.Random(derive_seed(seed, "shuffle", side)).shuffle(sources)
    source = dict(zip(subjects, sources, strict=True))
    return [{**row, "y": targets[source[row["subject"]]]} for row in rows]
