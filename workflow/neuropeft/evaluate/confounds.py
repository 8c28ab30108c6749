"""Confounds: can site and sex be predicted from a task's labels, features or predictions?

If the labels of a task go with the site and features show the site, a score may come from the scanner and not
from the brain. From labels and features it is asked how well a linear discriminant separates the sites, on
subjects that it was not fitted on. From predictions it is asked beyond the label: among subjects of one
class, or of one fifth of the values, of whose predictions the line through all by target is taken away.
Predictions have few columns and test subjects, so nothing is fitted: their ranks are compared, and sites
permuted within classes say what chance does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from neuropeft import layout
from neuropeft.cohorts.splits import first_rows
from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.evaluate.score import Source, entries, p_permutation, prediction_file
from neuropeft.evaluate.token_kernel import mean_tokens
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.store import open_store, pool
from neuropeft.tasks import of_spec
from neuropeft.tasks.base import Array, TaskKind
from neuropeft.tasks.metrics import auc

CONFOUNDERS = ("site", "sex")
LABELS, VOXELS, FEATURES = "labels", "voxels", "features"  # sources, beside the methods
FEWEST = 10  # subjects that a site must have to count
FOLDS, DRAWS, PERMUTED = 5, 2000, 1000
ROUNDING = 1e-9  # of an AUC: permutations that are as good differ by the order of sums
LEAST = 1e-6  # variance within a level, of standardised features
COLUMNS = ("confounder", "levels", "source", "backbone", "pretraining", "n", "auc", "ci_low", "ci_high", "p")

Values = dict[str, Array]  # subject -> [features]


def write_confounds(spec: Mapping[str, Any], results: Path, out: Path) -> None:
    """Write how well site and sex can be predicted in the training cohort of a task.

    Args:
        spec: what `confound_spec` of `contenders` returned.
        results: the results folder.
        out: file for a row per confounder and source: `labels`, `voxels` (pooled, as the control has them),
            `features` (the mean token of a frozen backbone) or a method (its predictions). `auc` is the area
            under the ROC curve, of several sites the mean over them; see `predictability`, which gives those
            of methods no interval, and `shown_by_predictions`, which gives them the `p`. A confounder that
            is predicted, or of which there is one level, has no row.
    """
    kind = of_spec(spec["task"])
    people = _people(results, spec["task"]["name"], spec["cohorts"][0])
    sources = list(_sources(spec, results, kind, people))
    found = []
    for confounder in CONFOUNDERS:
        if confounder in spec["targets"]:
            continue
        for names, values in sources:
            level = {subject: people[subject][confounder] for subject in values}
            beyond = names["source"] not in (LABELS, VOXELS, FEATURES)
            if beyond:
                strata = kind.strata({subject: people[subject]["y"] for subject in values})
                row = shown_by_predictions(values, level, strata)
            else:
                row = predictability(values, level)
            if row is not None:
                found.append({"confounder": confounder, **names, **row})
    write_tsv(out, found, COLUMNS)


def predictability(values: Values, level: Mapping[str, str]) -> dict[str, float] | None:
    """Return how well a level of each subject, such as its site, can be predicted from its values.

    Args:
        values: [features] of each subject.
        level: of each subject, n/a where it is unknown.

    Returns:
        `levels`, `n`, `auc` on subjects that were not fitted on, and `ci_low` and `ci_high`, its 95 %
        interval over subjects; None where fewer than two levels have `FEWEST` subjects.
    """
    subjects, y = _known(values, level)
    if not subjects:
        return None
    probabilities = _out_of_fold(np.array([values[subject] for subject in subjects]), y)
    area = float(_area(y, probabilities, np.ones(len(y))))
    drawn = [_area(y, probabilities, weights) for weights in resamples(len(y), DRAWS)]
    low, high = percentile_interval(np.concatenate(drawn))
    return {"levels": int(y.max()) + 1, "n": len(y), "auc": area, "ci_low": low, "ci_high": high}


def shown_by_predictions(
    values: Values, level: Mapping[str, str], strata: Mapping[str, int]
) -> dict[str, float] | None:
    """Return how well the ranks of predictions separate the levels of subjects of the same stratum.

    The AUC of a level against the others is that of the column that separates them best, in either
    direction, over the pairs of subjects within strata.

    Args:
        values: [columns] of each subject.
        level: of each subject, n/a where it is unknown.
        strata: of each subject; only subjects of the same one are compared.

    Returns:
        `levels`, `n`, `auc`, which is above 0.5 by chance as well, and `p`: how often levels that are
        permuted within strata are separated as well (Phipson & Smyth 2010). None where fewer than two levels
        have `FEWEST` subjects, there are none to compare, or a value is not finite.
    """
    subjects, y = _known(values, level)
    if not subjects:
        return None
    stratum = np.array([strata[subject] for subject in subjects])
    strata_rows = [np.flatnonzero(stratum == value) for value in np.unique(stratum)]
    columns = np.array([values[subject] for subject in subjects]).T  # [columns, n]
    levels, ranks = int(y.max()) + 1, np.empty(columns.shape)
    least, pairs = np.zeros(levels), np.zeros(levels)  # of each level: its least sum of ranks; its pairs
    for rows in strata_rows:
        ranks[:, rows] = rankdata(columns[:, rows], axis=1)
        own = np.bincount(y[rows], minlength=levels)
        least += own * (own + 1) / 2
        pairs += own * (len(rows) - own)
    if not pairs.any() or not np.isfinite(columns).all():
        return None

    def apart(y: NDArray[np.int_]) -> float:
        """Return by how much the AUC of the best column exceeds 0.5 (Mann & Whitney 1947), mean of levels."""
        sums = np.array([np.bincount(y, column, levels) for column in ranks])  # [columns, levels]
        areas = (sums - least)[:, pairs > 0] / pairs[pairs > 0]
        return float(np.abs(areas - 0.5).max(axis=0).mean())

    found, permuted, null, generator = apart(y), y.copy(), np.empty(PERMUTED), np.random.default_rng(0)
    for number in range(PERMUTED):
        for rows in strata_rows:
            permuted[rows] = generator.permutation(permuted[rows])
        null[number] = apart(permuted)
    p = p_permutation(null, found - ROUNDING)
    return {"levels": levels, "n": len(y), "auc": 0.5 + found, "p": p}


def _known(values: Values, level: Mapping[str, str]) -> tuple[list[str], NDArray[np.int_]]:
    """Return the subjects whose level has enough of them, and the number of each one's; none of one level."""
    counts = Counter(level.values())
    names = [name for name in sorted(counts) if name != MISSING and counts[name] >= FEWEST]
    if len(names) < 2:
        return [], np.array([], dtype=int)
    subjects = sorted(subject for subject in values if level[subject] in names)
    return subjects, np.array([names.index(level[subject]) for subject in subjects])


def _area(y: NDArray[np.int_], probabilities: Array, weights: Array) -> Array:
    """Return the AUC of each level against the others, the mean over levels, [...].

    `y` is of each subject, [n]; `weights` say how often it counts, [..., n].
    """
    levels = range(1 if probabilities.shape[1] == 2 else 0, probabilities.shape[1])
    return np.mean([auc((y == one).astype(float), probabilities[:, one], weights) for one in levels], axis=0)


def _out_of_fold(features: Array, y: NDArray[np.int_]) -> Array:
    """Return the probability of each level, by a discriminant that has not seen the subject, [n, levels]."""
    from sklearn.base import BaseEstimator
    from sklearn.covariance import ledoit_wolf
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    class Shrunk(BaseEstimator):
        """Ledoit and Wolf's shrinkage, which has nothing to be tuned, plus a little.

        scikit-learn's own (`shrinkage="auto"`) finds nothing where a level alone says all of the features, as
        where each site has one class: they have no variance within it, and discriminants divide by that.
        """

        def fit(self, x: Array) -> "Shrunk":
            scale = np.where(x.std(0) > 0, x.std(0), 1)
            self.covariance_ = np.outer(scale, scale) * ledoit_wolf(x / scale)[0] + LEAST * np.eye(len(scale))
            return self

    # Of more features than subjects all components are as good, and take less time.
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk())
    model = make_pipeline(StandardScaler(), PCA(), discriminant)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, features, y, cv=folds, method="predict_proba")


# -- sources ---------------------------------------------------------------------------------------


def _people(results: Path, task: str, cohort: str) -> dict[str, dict[str, Any]]:
    """Return the row of the first scan of each subject: its labels, its site, its place in the store."""
    places = {
        row["scan_id"]: i for i, row in enumerate(read_tsv(layout.STORED_SCANS.at(results, cohort=cohort)))
    }
    sites = {row["scan_id"]: row["site"] for row in read_tsv(layout.SITES.at(results, cohort=cohort))}
    labels = read_tsv(layout.LABELS.at(results, task=task, cohort=cohort))
    rows = [
        {**row, "site": sites[row["scan_id"]], "place": places[row["scan_id"]]}
        for row in labels
        if row["scan_id"] in places
    ]
    return {subject: dict(row) for subject, row in first_rows(rows).items()}


def _sources(
    spec: Mapping[str, Any], results: Path, kind: TaskKind, people: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[dict[str, str], Values]]:
    """Yield what names a source, and its values of each subject."""
    (cohort,), subjects = spec["cohorts"], list(people)
    y = kind.array(people[subject]["y"] for subject in subjects)
    yield {"source": LABELS}, _by_subject(subjects, _as_features(kind, y))
    volumes = open_store(layout.STORE.at(results, cohort=cohort)).volumes
    places = [people[subject]["place"] for subject in subjects]
    yield {"source": VOXELS}, {s: pool(volumes[place]) for s, place in zip(subjects, places, strict=True)}
    for one in spec["features"]:
        tokens = np.load(layout.FEATURES.at(results, **one, cohort=cohort), mmap_mode="r")
        names = {"source": FEATURES, "backbone": one["backbone"], "pretraining": one["pretraining"]}
        yield names, _by_subject(subjects, mean_tokens([(tokens, places)]))
    source = Source(kind, [cohort], spec["folds"], lambda *key: prediction_file(results, *key), {})
    for entry in entries(spec):
        backbone, pretraining, method = entry.line
        left = list(_left_of_predictions(source, cohort, source.tested(entry, cohort)))
        if left:
            tested = [subject for subject in left[0] if subject in people]
            mean = {subject: np.mean([one[subject] for one in left], axis=0) for subject in tested}
            yield {"source": method, "backbone": backbone, "pretraining": pretraining}, mean


def _by_subject(subjects: Sequence[str], values: Array) -> Values:
    return dict(zip(subjects, values, strict=True))


def _as_features(kind: TaskKind, y: Array) -> Array:
    """Return targets [n, ...] as features: a column per class; of a label that is unknown, a half."""
    if kind.regresses or y.ndim > 1:
        return np.nan_to_num(y.reshape(len(y), -1), nan=0.5)
    return np.eye(kind.size)[y.astype(int)]


def _left_of_predictions(source: Source, cohort: str, tested: Mapping[int, Any]) -> Iterator[Values]:
    """Yield, for each seed that is complete, what the targets leave of its predictions on test subjects."""
    for runs in tested.values():
        if all(run is not None for _, run in runs.values()):
            (run,) = source.scored(cohort, runs)
            yield _by_subject(run.subjects, beyond_target(source.kind, run.y, run.score))


def beyond_target(kind: TaskKind, y: Array, score: Array) -> Array:
    """Return scores less what their targets make of them, [n, columns].

    That is the mean score of the class or, of values, the line through scores by target.

    Args:
        kind: what is predicted.
        y: targets, [n, ...].
        score: predictions, [n] or [n, columns].
    """
    left = np.array(score.reshape(len(score), -1), dtype=float)
    for column in left.T:
        if kind.regresses:
            column -= np.polyval(np.polyfit(y, column, 1), y)
    if kind.regresses:
        return left
    for number, (known, target) in enumerate(kind.separate(y)):
        columns = slice(None) if y.ndim == 1 else slice(number, number + 1)
        left[~known, columns] = 0
        rows = np.flatnonzero(known)
        for value in np.unique(target):
            same = rows[target == value]
            left[same, columns] -= left[same, columns].mean(0)
    return left
