"""Probes: what small models read from the tokens of a frozen backbone, and what they read by chance.

Linear probes follow He 2022 (MAE, appendix A) in spirit: standardised features of a frozen encoder and a
linear model, here in closed form and with its penalty chosen within training. All are fitted on the
training subjects only.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropeft import layout
from neuropeft.cohorts.splits import TRAIN, VALIDATION, ZERO_SHOT, first_rows, read_split, take_subset
from neuropeft.errors import UserError
from neuropeft.evaluate.token_kernel import Wanted, mean_tokens, token_kernel
from neuropeft.files import read_tsv, write_tsv
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, PROBES, null_file, null_method
from neuropeft.progress import track
from neuropeft.split_names import seed_and_fold
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS, CONTROL_METHOD, Array, TaskKind
from neuropeft.tasks.linear import fewest_fitted, fit_linear, tuned

Row = dict[str, Any]

NEIGHBOURS = (1, 3, 5, 10, 20)
MOST_COMPONENTS = 256  # of the principal components of all tokens
MOST_EXACT = (
    1000  # training scans; of more, finding all components exactly would take the cube of their number
)
# Mean squared distance of a training scan from their mean, in the space of all tokens: that of the 1,000
# standardised voxels of the control `ridge_voxels`, for which the penalties are made.
SPREAD = 1000.0


@dataclass(frozen=True)
class Scans:
    """The scans of a task: those of all training subjects first, then those that are predicted."""

    rows: list[Row]  # cohort, scan_id, subject, session, split and y of each scan, [m]
    train: int  # how many of them are for training, n
    mean: Array  # mean over the tokens of each scan, [m, width]
    kernel: Array  # products of all tokens of each scan with those of the training scans, [m, n]

    @property
    def tested(self) -> list[Row]:
        """The rows of the scans that are predicted."""
        return self.rows[self.train :]


@dataclass(frozen=True)
class Part:
    """The scans of a part of the training subjects, and the features that one probe has of them."""

    subjects: NDArray[Any]
    y: Array
    features: Array
    tested: Array


def write_probes(
    kind: TaskKind,
    split: Path,
    subsets: Sequence[Subset],
    cohorts: Sequence[str],
    features: Sequence[Path],
    out: Path,
) -> None:
    """Fit the probes of an encoder on a split and predict validation, test and zero-shot scans.

    Args:
        kind: what is predicted.
        split: the split in `results/splits/{task}/`; labels and stores are found from there.
        subsets: how much of the training and of the validation subjects, one after another.
        cohorts: the training cohort, then the zero-shot cohorts.
        features: the file of tokens (`write_features`) of each cohort.
        out: folder for `{cohort}.tsv` with the columns of a control's file, and `{cohort}.null.tsv`, the
            same for the linear probes fitted on PERMUTATIONS permutations of the training targets, a row
            for each subject's first scan; its methods are `{probe}/{permutation}`.

    Raises:
        UserError: the training subjects are all of one class, or features are of another store.
    """
    scans = _read(split, cohorts, features)
    sides, (seed, fold) = read_split(split), seed_and_fold(split)
    first = {
        id(row)
        for cohort in cohorts
        for row in first_rows(one for one in scans.tested if one["cohort"] == cohort).values()
    }
    found: list[Row] = []
    null: list[Row] = []
    for subset in track(subsets, len(subsets), "subsets"):
        # Of the validation subjects, only those whose labels are known with this subset.
        chosen, validating = (
            {row["scan_id"] for row in take_subset(sides, subset, kind, side, split.parent.name)}
            for side in (TRAIN, VALIDATION)
        )
        keep = [row["split"] != VALIDATION or row["scan_id"] in validating for row in scans.tested]
        keep_first = [kept and id(row) in first for kept, row in zip(keep, scans.tested, strict=True)]
        places = np.array([i for i in range(scans.train) if scans.rows[i]["scan_id"] in chosen])
        y = kind.array(scans.rows[i]["y"] for i in places)
        if kind.nothing_to_learn(y):
            raise UserError(
                f"{split}: the training subjects of {subset} are all of one class; add scans of the "
                "other classes or leave the subset out"
            )
        # zip stops at once where there are no such columns
        prior = dict(zip(kind.prior_columns, kind.constant_scores(y), strict=False))
        common = {"subset": str(subset), "seed": seed, "fold": fold} | prior
        targets = _permuted(kind, scans, places, zlib.crc32(f"{split.stem} {subset.size}".encode()))
        for probe in PROBES:
            part = _part(scans, places, y, probe)
            models = _fit(probe, kind, part)
            scores = kind.model_scores(models, part.tested)
            found += _rows(scans.tested, scores, kind, common | {CONTROL_METHOD: probe}, keep)
            if probe in PERMUTED:
                for number, scores in enumerate(_null_scores(models, kind, part, targets)):
                    method = {CONTROL_METHOD: null_method(probe, number)}
                    null += _rows(scans.tested, scores, kind, common | method, keep_first)
    columns = [CONTROL_METHOD, *COLUMNS, *kind.score_columns, *kind.prior_columns]
    for cohort in cohorts:
        path = out / f"{cohort}.tsv"
        for table, rows in ((path, found), (null_file(path), null)):
            write_tsv(table, [row for row in rows if row["cohort"] == cohort], columns)


# -- data ------------------------------------------------------------------------------------------


def _read(split: Path, cohorts: Sequence[str], features: Sequence[Path]) -> Scans:
    results, task = split.parents[2], split.parent.name
    side_of = {row["scan_id"]: row["side"] for row in read_split(split)}
    rows: list[Row] = []
    tokens: list[Wanted] = []
    for cohort, path in zip(cohorts, features, strict=True):
        stored = read_tsv(layout.STORED_SCANS.at(results, cohort=cohort))
        place = {row["scan_id"]: place for place, row in enumerate(stored)}
        of_cohort: list[Row] = [
            row | {"cohort": cohort, "split": side, "place": place[row["scan_id"]]}
            for row in read_tsv(layout.LABELS.at(results, task=task, cohort=cohort))
            if row["scan_id"] in place
            and (side := side_of.get(row["scan_id"]) if cohort == cohorts[0] else ZERO_SHOT)
        ]
        of_cohort.sort(key=lambda row: row["split"] != TRAIN)  # training scans first, else as they were
        rows += of_cohort
        tokens.append((_open(path, len(stored)), [row["place"] for row in of_cohort]))
    train = sum(row["split"] == TRAIN for row in rows)
    return Scans(rows, train, mean_tokens(tokens), token_kernel(tokens, train))


def _open(path: Path, scans: int) -> NDArray[np.float16]:
    try:
        tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it and run the workflow again") from error
    if tokens.ndim != 3 or len(tokens) != scans:
        raise UserError(
            f"{path} has the shape {tokens.shape}, but its cohort's store {scans} scans; "
            "delete it and run the workflow again"
        )
    return tokens


def _part(scans: Scans, places: NDArray[np.int_], y: Array, probe: str) -> Part:
    subjects = np.array([scans.rows[i]["subject"] for i in places])
    if probe != "probe_concat":
        return Part(subjects, y, scans.mean[places], scans.mean[scans.train :])
    kernel = scans.kernel[:, places]
    own = kernel[places]
    # The distances from the mean, which centring (by KernelPCA) leaves.
    spread = (own.trace() - own.sum() / len(own)) / len(own)
    scale = SPREAD / spread if spread > 0 else 1.0
    principal = _principal(len(y)).fit(own * scale)
    return Part(
        subjects, y, principal.transform(own * scale), principal.transform(kernel[scans.train :] * scale)
    )


def _principal(scans: int) -> Any:
    """Return what finds the principal components of all tokens; they know no target.

    Of products of scans it is the PCA of their tokens (dual form), at a cost that does not grow with them.
    """
    from sklearn.decomposition import KernelPCA

    components = max(1, min(scans - 1, MOST_COMPONENTS))
    solver = "dense" if scans <= MOST_EXACT else "randomized"
    return KernelPCA(components, kernel="precomputed", eigen_solver=solver, random_state=0)


# -- models ----------------------------------------------------------------------------------------


def _fit(probe: str, kind: TaskKind, part: Part) -> list[Any]:
    """Return the fitted pipelines of a probe, one for each of `kind.separate`."""
    if probe == "knn":
        return _nearest(kind, part)
    scaled = None if probe == "probe_mean" else "passthrough"  # components keep their size
    return fit_linear(kind, part.features, part.y, part.subjects, scaled)


def _nearest(kind: TaskKind, part: Part) -> list[Any]:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    fitted_on = fewest_fitted(kind, part.y, part.subjects)
    numbers = [k for k in NEIGHBOURS if k <= fitted_on] or [1]
    model = KNeighborsRegressor if kind.regresses else KNeighborsClassifier
    pipeline = Pipeline([("scaler", StandardScaler()), ("neighbours", model(numbers[-1]))])
    # The log loss of one neighbour is infinite wherever it is wrong.
    scoring = "neg_mean_absolute_error" if kind.regresses else _negative_brier
    choices = {"neighbours__n_neighbors": numbers}
    return tuned(pipeline, choices, scoring, kind, part.features, part.y, part.subjects)


def _negative_brier(model: Any, features: Array, y: Array) -> float:
    right = y[:, None] == model.classes_
    return -float(((model.predict_proba(features) - right) ** 2).sum(1).mean())


def _permuted(kind: TaskKind, scans: Scans, places: NDArray[np.int_], seed: int) -> Array:
    """Return targets [PERMUTATIONS, training scans, ...] permuted among subjects, whose scans share one."""
    first = first_rows(scans.rows[i] for i in places)
    names = sorted(first)
    y = kind.array(first[name]["y"] for name in names)
    index = np.array([names.index(scans.rows[i]["subject"]) for i in places])
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(y)[index] for _ in range(PERMUTATIONS)])


def _null_scores(models: Sequence[Any], kind: TaskKind, part: Part, targets: Array) -> Iterator[Array]:
    """Yield the scores [tested, columns] of a linear probe refitted on each of the permuted targets.

    The penalty and, since they know no target, what comes before the linear model stay.
    """
    from sklearn.base import clone

    if kind.regresses:  # one factorisation for all of them
        (model,) = models
        train, tested = model[:-1].transform(part.features), model[:-1].transform(part.tested)
        yield from clone(model[-1]).fit(train, targets.T).predict(tested).T[..., None]
        return
    for permuted in targets:
        refitted: list[Any] = []
        for model, (known, target) in zip(models, kind.separate(permuted), strict=True):
            if isinstance(model, float):
                refitted.append(model)
            elif len(np.unique(target)) < 2:  # the only scans of a class were not their subject's first
                refitted.append(float(target[0]))
            else:
                refitted.append(_refit(model, part.features[known], target))
        yield kind.model_scores(refitted, part.tested)


def _refit(model: Any, features: Array, target: Array) -> Any:
    """Return a fitted pipeline with its last step fitted anew."""
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline

    before = model[:-1]
    return make_pipeline(before, clone(model[-1]).fit(before.transform(features), target))


# -- tables ----------------------------------------------------------------------------------------


def _rows(
    scans: Sequence[Row], scores: Array, kind: TaskKind, common: Row, keep: Sequence[bool]
) -> list[Row]:
    return [
        scan | common | _named(kind.score_columns, score)
        for scan, score, kept in zip(scans, scores, keep, strict=True)
        if kept
    ]


def _named(names: Sequence[str], values: Sequence[float] | Array) -> dict[str, str]:
    return {name: f"{value:.7g}" for name, value in zip(names, values, strict=True)}
