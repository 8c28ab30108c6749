"""Small models that controls and probes fit; what they choose is chosen within the training subjects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIDGE_PENALTIES = np.logspace(1, 6, 6)  # alpha: weak to strong
LOGISTIC_PENALTIES = np.logspace(-5, 0, 6)  # C, an inverse penalty: strong to weak
INNER_FOLDS = 5


def tuned_linear_model(
    kind: str, features: Array, y: Array, subjects: NDArray[Any], first: Any = None
) -> Any:
    """Ridge or L2-logistic regression; inner folds by subject choose the penalty on training subjects.

    Args:
        kind: binary, multiclass or regression.
        features: [scans, features].
        y: class indices or target values, [scans].
        subjects: names, [scans]; a subject's scans share an inner fold.
        first: what sklearn fits on the features before the model; standardisation by default.

    Returns:
        A fitted pipeline, whose last step is the linear model.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first = first or StandardScaler()
    if kind == "regression":
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
    kind: str,
    features: Array,
    y: Array,
    subjects: NDArray[Any],
) -> Any:
    """Fit a model with the choice that scores best in inner folds; as it is where subjects are too few."""
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    folds = inner_folds(subjects, y if kind != "regression" else np.zeros(len(y)))
    if folds.max() < 1:  # too few subjects to choose with: for a linear model, the strongest penalty stays
        return model.fit(features, y)
    search = GridSearchCV(model, choices, scoring=scoring, cv=PredefinedSplit(folds))
    return search.fit(features, y).best_estimator_


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


def one_class(kind: str, y: Array) -> bool:
    """Whether there is nothing to tell apart."""
    return kind != "regression" and len(np.unique(y)) < 2


def mean_scores(kind: str, classes: int, y: Array) -> Array:
    """Scores [columns] without any feature: the mean, or the class frequencies."""
    if kind == "regression":
        return np.array([y.mean()])
    frequencies = np.bincount(y.astype(int), minlength=classes) / len(y)
    return frequencies if kind == "multiclass" else frequencies[1:2]


def model_scores(model: Any, kind: str, classes: int, features: Array) -> Array:
    """Scores [scans, columns] of a fitted sklearn model: values, or probabilities of (one or all) classes."""
    if kind == "regression":
        return model.predict(features)[:, None]
    probabilities = np.zeros((len(features), classes))
    probabilities[:, model.classes_.astype(int)] = model.predict_proba(features)
    return probabilities if kind == "multiclass" else probabilities[:, 1:2]
