"""Stored predictions, read back with one row per subject."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import first_rows
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv
from neuropeft.records import AGAIN
from neuropeft.split_names import split_name
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS, CONTROL_METHOD, Run, TaskKind


@dataclass(frozen=True)
class RunKey:
    """What one run within a file is: `method` is empty unless the file holds several (controls).

    `split` is the side that was predicted; `fold` 0 stands for the fixed test side.
    """

    method: str
    subset: Subset
    seed: int
    split: str
    fold: int = 0


def read_predictions(path: Path, kind: TaskKind) -> dict[RunKey, Run]:
    """Read a prediction or control file.

    A subject's first scan (by session, then scan_id) stands for the subject, so subjects with many scans
    do not weigh more. Subjects whose score is `n/a` are left out: a control that needs an age cannot predict
    without one.

    Raises:
        UserError: a column is missing or a value is no number.
    """
    rows = read_tsv(path)
    wanted = (*COLUMNS, *kind.score_columns, *kind.prior_columns)
    if rows and (absent := [name for name in wanted if name not in rows[0]]):
        raise UserError(f"{path} lacks the column {absent[0]!r}: {AGAIN}")
    runs: dict[RunKey, list[dict[str, str]]] = defaultdict(list)
    for number, row in enumerate(rows, start=2):
        try:
            subset, seed, fold = Subset.parse(row["subset"]), int(row["seed"]), int(row["fold"])
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} row {number}: {error}; {AGAIN}") from error
        runs[RunKey(row.get(CONTROL_METHOD, ""), subset, seed, row["split"], fold)].append(row)
    try:
        read = {key: _run(path, key, of_run, kind) for key, of_run in runs.items()}
    except ValueError as error:
        raise UserError(f"{path}: {error}; {AGAIN}") from error
    return {key: run for key, run in read.items() if run.subjects}


def _run(path: Path, key: RunKey, rows: list[dict[str, str]], kind: TaskKind) -> Run:
    first, names = first_rows(rows), kind.score_columns
    kept = [first[subject] for subject in sorted(first) if first[subject][names[0]] != MISSING]
    folder = layout.predicted_files(path, str(key.subset), split_name(key.seed, key.fold))
    score = kind.read_scores(kept, folder)
    return Run(
        subjects=tuple(row["subject"] for row in kept),
        y=kind.truth(row["y"] for row in kept),
        score=score if score.shape[1] > 1 else score[:, 0],
        prior=np.array([float(rows[0][name]) for name in kind.prior_columns]),
    )
