"""Controls: what a task's scores are worth without a transformer.

`mean` predicts the training mean (the class frequencies), `age_sex` is a linear model on age and sex, and
`ridge_voxels` a linear model on mean-pooled voxels. All are fitted on training subjects only, of the same
subsets as the cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import TEST, TRAIN, VALIDATION, ZERO_SHOT, read_split, take_subset
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.split_names import seed_and_fold
from neuropeft.store import Store, open_store, pool
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS, CONTROL_METHOD, Array, TaskKind
from neuropeft.tasks.linear import fit_linear

Row = dict[str, str]
Features = Callable[[Row, str], Array]  # a scan's row and its cohort -> [features]

KNOWN_SHARE = 0.5  # a subject variable that is known for fewer training scans is not used


@dataclass(frozen=True)
class Side:
    """Scans that are fitted on or predicted: their rows, targets and features ([scans, features])."""

    rows: list[Row]
    y: Array
    features: Array


def write_controls(
    kind: TaskKind,
    targets: Sequence[str],
    split: Path,
    subsets: Sequence[Subset],
    cohorts: Sequence[str],
    out: Path,
) -> None:
    """Fit the controls of a task on each subset of a split; predict validation, test and zero-shot scans.

    Args:
        kind: what is predicted.
        targets: columns that are predicted; `age_sex` leaves them out of its features.
        split: `results/splits/{task}/{split}.tsv`; labels and stores are found from there.
        subsets: how much of the training and of the validation subjects.
        cohorts: the training cohort, then the zero-shot cohorts.
        out: folder for one `{cohort}.tsv` each.

    Raises:
        UserError: the training subjects are all of one class.
    """
    results, task = split.parents[2], split.parent.name
    sides = read_split(split)
    stores = {cohort: open_store(layout.STORE.at(results, cohort=cohort)) for cohort in cohorts}
    tables = {
        cohort: _labelled_rows(layout.LABELS.at(results, task=task, cohort=cohort), store)
        for cohort, store in stores.items()
    }
    voxels = {cohort: _pooled(stores[cohort], rows) for cohort, rows in tables.items()}
    home = cohorts[0]
    labels = {row["scan_id"]: row for row in tables[home]}
    seed, fold = seed_and_fold(split)
    scores: dict[str, list[dict[str, object]]] = {cohort: [] for cohort in cohorts}
    for subset in subsets:
        of_side = {side: take_subset(sides, subset, kind, side, task) for side in (TRAIN, VALIDATION)}
        of_side[TEST] = [row for row in sides if row["side"] == TEST]
        found = {
            side: [labels[row["scan_id"]] | {"split": side} for row in rows if row["scan_id"] in labels]
            for side, rows in of_side.items()
        }
        train, wanted = found[TRAIN], tables | {home: found[VALIDATION] + found[TEST]}
        y = kind.array(row["y"] for row in train)
        if kind.nothing_to_learn(y):
            raise UserError(
                f"{split}: all training subjects of {subset} are of one class; add scans of the other "
                "classes or give a larger subset"
            )
        run = {"subset": str(subset), "seed": seed, "fold": fold}
        # zip stops at once where there are no such columns
        prior = dict(zip(kind.prior_columns, kind.constant_scores(y), strict=False))
        for method, features in _methods(voxels, _known_variables(train, targets)).items():
            predict = fit(method, kind, make_side(kind, train, home, features))
            for cohort in cohorts:
                side = make_side(kind, wanted[cohort], cohort, features)
                rows = score_rows(method, kind, run, side, predict(side.features))
                scores[cohort] += [row | prior for row in rows]
    columns = [CONTROL_METHOD, *COLUMNS, *kind.score_columns, *kind.prior_columns]
    for cohort in cohorts:
        write_tsv(out / f"{cohort}.tsv", scores[cohort], columns)


def _methods(voxels: Mapping[str, Mapping[str, Array]], names: list[str]) -> dict[str, Features]:
    """Return what gives the features of a scan, for each control."""
    return {
        "mean": lambda row, cohort: np.zeros(1),
        "age_sex": lambda row, cohort: _subject_variables(row, names),
        "ridge_voxels": lambda row, cohort: voxels[cohort][row["scan_id"]],
    }


# -- data ------------------------------------------------------------------------------------------


def _labelled_rows(labels: Path, store: Store) -> list[Row]:
    stored = set(store.scan_ids)
    return [row for row in read_tsv(labels) if row["scan_id"] in stored]


def make_side(kind: TaskKind, rows: list[Row], cohort: str, features: Features) -> Side:
    """Return the scans of a cohort with their targets and features."""
    values = [features(row, cohort) for row in rows]
    return Side(rows, kind.array(row["y"] for row in rows), np.array(values).reshape(len(rows), -1))


def _pooled(store: Store, rows: list[Row]) -> dict[str, Array]:
    """Mean-pool the volumes of `rows`; read one by one from the mapped file."""
    return {row["scan_id"]: pool(store.volumes[store.index_of(row["scan_id"])]) for row in rows}


def _known_variables(train: list[Row], targets: Sequence[str]) -> list[str]:
    return [
        name
        for name in ("age", "sex")
        if name not in targets and np.mean([row[name] != MISSING for row in train]) >= KNOWN_SHARE
    ]


def _subject_variables(row: Row, names: list[str]) -> Array:
    """Age in years and sex as 0 (F) or 1 (M); NaN where unknown."""
    values = {"age": row["age"], "sex": {"F": "0", "M": "1"}.get(row["sex"], MISSING)}
    return np.array([float("nan") if values[name] == MISSING else float(values[name]) for name in names])


# -- models ----------------------------------------------------------------------------------------


def fit(method: str, kind: TaskKind, train: Side) -> Callable[[Array], Array]:
    """Fit a control; the returned function maps features to scores [scans, columns], NaN where unknown."""
    known = np.isfinite(train.features).all(1)
    columns = len(kind.score_columns)
    if method == "mean":
        constant = kind.constant_scores(train.y)
        return lambda features: np.tile(constant, (len(features), 1))
    if not train.features.shape[1] or not known.any() or kind.nothing_to_learn(train.y[known]):
        return lambda features: np.full((len(features), columns), np.nan)
    subjects = np.array([row["subject"] for row in train.rows])[known]
    models = fit_linear(kind, train.features[known], train.y[known], subjects)

    def predict(features: Array) -> Array:
        scores = np.full((len(features), columns), np.nan)
        rows = np.isfinite(features).all(1)
        if rows.any():
            scores[rows] = kind.model_scores(models, features[rows])
        return scores

    return predict


def score_rows(
    method: str, kind: TaskKind, run: Mapping[str, object], side: Side, scores: Array
) -> list[dict[str, object]]:
    """Return the rows of a prediction file.

    Args:
        method: name of the control.
        kind: what was predicted.
        run: subset, seed and fold of the fit.
        side: what was predicted; the rows' `split` is their side, zero-shot where they have none.
        scores: [scans, columns] as `fit`'s function returns them; NaN becomes n/a.
    """
    return [
        {
            CONTROL_METHOD: method,
            **run,
            "split": row.get("split", ZERO_SHOT),
            **{name: row[name] for name in ("scan_id", "subject", "session", "y")},
            **{
                name: value if np.isfinite(value) else None
                for name, value in zip(kind.score_columns, values, strict=True)
            },
        }
        for row, values in zip(side.rows, scores, strict=True)
    ]
