"""Stored predictions, read back with one row per subject."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv

COLUMNS = ("fraction", "seed", "split", "scan_id", "subject", "session", "y")
CONTROL_METHOD = "method"  # the column that control files have beyond COLUMNS


@dataclass(frozen=True)
class RunKey:
    """What one run within a file is: `method` is empty unless the file holds several (controls)."""

    method: str
    fraction: int
    seed: int
    split: str


@dataclass(frozen=True)
class Run:
    """Predictions of one run on one side: one row per subject, sorted by subject.

    Attributes:
        subjects: names, [n].
        y: class indices or target values, [n].
        score: [n] (binary: probability of class 1; regression: value) or [n, classes].
    """

    subjects: tuple[str, ...]
    y: NDArray[np.float64]
    score: NDArray[np.float64]


def score_columns(kind: str, classes: int) -> list[str]:
    """Return the names of the score columns of a prediction file."""
    return [f"score_{k}" for k in range(classes)] if kind == "multiclass" else ["score"]


def read_predictions(path: Path, kind: str, classes: int) -> dict[RunKey, Run]:
    """Read a prediction or control file.

    A subject's first scan (by session, then scan_id) stands for the subject, so subjects with many scans
    do not weigh more. Scans whose score is `n/a` are left out: a control that needs an age cannot predict
    for a subject without one.

    Raises:
        UserError: a column is missing or a value is no number.
    """
    rows = read_tsv(path)
    names = score_columns(kind, classes)
    if rows and (absent := [name for name in (*COLUMNS, *names) if name not in rows[0]]):
        raise UserError(f"{path} lacks the column {absent[0]!r}: delete it and run the workflow again")
    runs: dict[RunKey, list[dict[str, str]]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        try:
            fraction, seed = int(row["fraction"]), int(row["seed"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} row {number}: {error}; delete the file and run again") from error
        runs[RunKey(row.get(CONTROL_METHOD, ""), fraction, seed, row["split"])].append(row)
    try:
        read = {key: _run(of_run, names) for key, of_run in runs.items()}
    except ValueError as error:
        raise UserError(f"{path}: {error}; delete the file and run the workflow again") from error
    return {key: run for key, run in read.items() if run.subjects}


def first_scans(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Keep each subject's first row by session and scan_id; numbers sort as numbers (M6 before M12)."""
    ordered = sorted(rows, key=lambda row: (_natural(row["session"]), _natural(row["scan_id"])))
    first: dict[str, dict[str, str]] = {}
    for row in ordered:
        first.setdefault(row["subject"], row)
    return [first[subject] for subject in sorted(first)]


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _run(rows: list[dict[str, str]], names: list[str]) -> Run:
    rows = first_scans(row for row in rows if row[names[0]] != MISSING)
    score = np.array([[float(row[name]) for name in names] for row in rows]).reshape(len(rows), len(names))
    return Run(
        subjects=tuple(row["subject"] for row in rows),
        y=np.array([float(row["y"]) for row in rows]),
        score=score if len(names) > 1 else score[:, 0],
    )
