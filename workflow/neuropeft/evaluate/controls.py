"""Controls: what a task's scores are worth without a transformer.

`mean` predicts the training mean (the class frequencies), `age_sex` is a linear model on age and sex,
`sex_site` on sex and site, `morphometry` on region volumes that a cohort brings along, and `ridge_voxels` on
mean-pooled voxels. All are fitted on training subjects only, of the same subsets as the cells.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

KNOWN_SHARE = 0.5  # a variable that is known for a smaller share of the training scans is not used
VARIABLES = {"age_sex": ("age", "sex"), "sex_site": ("sex", "site")}  # of controls that take no other


@dataclass(frozen=True)
class Side:
    """Scans that are fitted on or predicted: their rows, targets and features ([scans, features])."""

    rows: list[Row]
    y: Array
    features: Array


def write_controls(
    kind: TaskKind,
    methods: Sequence[str],
    targets: Sequence[str],
    split: Path,
    subsets: Sequence[Subset],
    cohorts: Sequence[str],
    out: Path,
) -> None:
    """Fit the controls of a task on each subset of a split; predict validation, test and zero-shot scans.

    Args:
        kind: what is predicted.
        methods: the controls, see above.
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
    measured = {
        method: {
            cohort: _measured(method, results, cohort, stores[cohort], rows)
            for cohort, rows in tables.items()
        }
        for method in methods
    }
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
        for method in methods:
            features = _features(method, measured[method], train, home, targets)
            predict = fit(method, kind, make_side(kind, train, home, features))
            for cohort in cohorts:
                side = make_side(kind, wanted[cohort], cohort, features)
                rows = score_rows(method, kind, run, side, predict(side.features))
                scores[cohort] += [row | prior for row in rows]
    columns = [CONTROL_METHOD, *COLUMNS, *kind.score_columns, *kind.prior_columns]
    for cohort in cohorts:
        write_tsv(out / f"{cohort}.tsv", scores[cohort], columns)


# -- data ------------------------------------------------------------------------------------------


def _labelled_rows(labels: Path, store: Store) -> list[Row]:
    stored = set(store.scan_ids)
    return [row for row in read_tsv(labels) if row["scan_id"] in stored]


def make_side(kind: TaskKind, rows: list[Row], cohort: str, features: Features) -> Side:
    """Return the scans of a cohort with their targets and features."""
    values = [features(row, cohort) for row in rows]
    return Side(rows, kind.array(row["y"] for row in rows), np.array(values).reshape(len(rows), -1))


def _measured(method: str, results: Path, cohort: str, store: Store, rows: list[Row]) -> dict[str, Any]:
    """Return what a control has of each scan: [voxels], or its values by column; nothing where labels do."""
    if method == "ridge_voxels":  # mean-pooled; read one by one from the mapped file
        return {row["scan_id"]: pool(store.volumes[store.index_of(row["scan_id"])]) for row in rows}
    table = {"sex_site": layout.SITES, "morphometry": layout.MORPHOMETRY}.get(method)
    path = table.at(results, cohort=cohort) if table else None
    # A zero-shot cohort may have no region volumes.
    if path is None or (method == "morphometry" and not path.exists()):
        return {}
    return {row.pop("scan_id"): row for row in read_tsv(path)}


def _features(
    method: str,
    measured: Mapping[str, Mapping[str, Any]],
    train: list[Row],
    home: str,
    targets: Sequence[str],
) -> Features:
    """Return what gives the features of a scan for a control; training scans say which they are."""
    if method == "mean":
        return lambda row, cohort: np.zeros(1)
    if method == "ridge_voxels":
        return lambda row, cohort: measured[cohort][row["scan_id"]]

    def values(row: Row, cohort: str) -> Row:
        own = measured[cohort].get(row["scan_id"], {})
        sex = {"F": "0", "M": "1"}.get(row["sex"], MISSING)
        return own if method == "morphometry" else {"age": row["age"], "sex": sex} | own

    of_train = [values(row, home) for row in train]
    names = [
        name
        for name in VARIABLES.get(method, of_train[0])
        if name not in targets and np.mean([row[name] != MISSING for row in of_train]) >= KNOWN_SHARE
    ]
    sites = sorted({row["site"] for row in of_train} - {MISSING}) if method == "sex_site" else []
    return lambda row, cohort: _numbers(values(row, cohort), names, sites)


def _numbers(row: Row, names: Sequence[str], sites: Sequence[str]) -> Array:
    """Return the values of a scan, NaN where unknown; of its site, a number for each of those of training."""
    found: list[float] = []
    for name in names:
        value = row.get(name, MISSING)
        if name == "site" and sites:
            found += [math.nan if value == MISSING else float(value == site) for site in sites]
        else:
            found.append(math.nan if value == MISSING else float(value))
    return np.array(found)


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
