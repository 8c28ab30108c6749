"""Small models that controls and probes fit; what they choose is chosen within the training subjects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropeft.tasks.base import GUESS, Array, TaskKind

RIDGE_PENALTIES = np.logspace(1, 6, 6)  # alpha: weak to strong
LOGISTIC_PENALTIES = np.logspace(-5, 0, 6)  # C, an inverse penalty: strong to weak
INNER_FOLDS = 5


def fit_linear(
    kind: TaskKind, features: Array, y: Array, subjects: NDArray[Any], first: Any = None
) -> list[Any]:
    """Fit ridge or L2-logistic regressions; inner folds by subject choose the penalty on training subjects.

    Args:
        kind: what is predicted.
        features: [scans, features].
        y: targets, [scans, ...].
        subjects: names, [scans]; a subject's scans share an inner fold.
        first: what sklearn fits on the features before the model; standardisation by default.

    Returns:
        For each of `kind.separate`, a fitted pipeline, whose last step is the linear model, or the one class
        that all its targets are of, or `GUESS` without any target.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first = first or StandardScaler()
    if kind.regresses:
        model = make_pipeline(first, Ridge(RIDGE_PENALTIES[-1]))
        penalties, scoring = {"ridge__alpha": RIDGE_PENALTIES}, "neg_mean_absolute_error"
    else:
        model = make_pipeline(first, LogisticRegression(C=LOGISTIC_PENALTIES[0], max_iter=1000))
        penalties, scoring = {"logisticregression__C": LOGISTIC_PENALTIES}, "neg_log_loss"
    return tuned(model, penalties, scoring, kind, features, y, subjects)


def tuned(
    model: Any,
    choices: Mapping[str, Sequence[Any] | Array],
    scoring: Any,
    kind: TaskKind,
    features: Array,
    y: Array,
    subjects: NDArray[Any],
) -> list[Any]:
    """Fit a model to each of `kind.separate`, with the choice that scores best in inner folds.

    It stays as it is where subjects are too few to choose with. Arguments and result are as in `fit_linear`.
    """
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    fitted: list[Any] = []
    for known, target in kind.separate(y):
        if not kind.regresses and len(np.unique(target)) < 2:
            fitted.append(float(target[0]) if len(target) else GUESS)
            continue
        folds = _folds(kind, target, subjects[known])
        if folds.max() < 1:  # for a linear model, the strongest penalty stays
            fitted.append(clone(model).fit(features[known], target))
            continue
        search = GridSearchCV(clone(model), choices, scoring=scoring, cv=PredefinedSplit(folds))
        fitted.append(search.fit(features[known], target).best_estimator_)
    return fitted


def fewest_fitted(kind: TaskKind, y: Array, subjects: NDArray[Any]) -> int:
    """Return how many scans an inner fold leaves to fit on, at the least."""
    sizes = []
    for known, target in kind.separate(y):
        if not kind.regresses and len(np.unique(target)) < 2:
            continue  # nothing to fit
        folds = _folds(kind, target, subjects[known])
        sizes.append(len(folds) - int(np.bincount(folds).max()) if folds.max() else len(folds))
    return min(sizes, default=1)


def _folds(kind: TaskKind, target: Array, subjects: NDArray[Any]) -> NDArray[np.int_]:
    return inner_folds(subjects, np.zeros(len(target)) if kind.regresses else target)


def inner_folds(subjects: NDArray[Any], strata: Array) -> NDArray[np.int_]:
    """Fold of each scan: a subject's scans share one, and every stratum is spread over all folds."""
    names, first = np.unique(subjects, return_index=True)
    stratum = strata[first]
    folds = min(INNER_FOLDS, *(int((stratum == value).sum()) for value in np.unique(stratum)), len(names))
    fold_of = np.zeros(len(names), dtype=int)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        fold_of[members] = np.arange(len(members)) % folds
    return fold_of[np.searchsorted(names, subjects)]
