"""Brain age: errors by age, beside predicting the mean, corrected on validation, beyond the training ages."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import linregress, t

from neuropeft.evaluate.compare import ALPHA
from neuropeft.evaluate.people import Predicted, training_ages
from neuropeft.evaluate.subgroups import SMALL, band
from neuropeft.evaluate.tested import Tested
from neuropeft.tasks.base import Array, Run

EDGES = (20, 30, 40, 50, 60, 70, 80)  # years
FEWEST = 3  # subjects that an interval, or a line, is of

Record = dict[str, object]


def corrected(validation: Run, run: Run) -> Run:
    """Return test predictions without the bias that validation shows (Cole et al. 2018).

    Predictions are drawn to the mean age: prediction = a + b age. What is corrected is (prediction - a) / b,
    which needs no true age. NaN where validation does not show that predictions follow age at all.
    """
    fitted = linregress(validation.y, validation.score) if len(validation.y) >= FEWEST else None
    if fitted is None or not fitted.pvalue < ALPHA or fitted.slope <= 0:
        return replace(run, score=np.full_like(run.score, np.nan))
    return replace(run, score=(run.score - fitted.intercept) / fitted.slope)


def brain_age_record(one: Predicted, results: Path, of_mean: float) -> Record:
    """Return the figures of a method on a cohort, means over seeds.

    Predictions are in years; `of_mean` is the MAE of predicting the training mean, NaN if unknown.
    """
    before, after = one.tested(), one.tested(corrected)
    mae, error, slope = _figures(before)
    mae_after, error_after, slope_after = _figures(after)
    outside = _outside(one, results)
    inside = np.array([subject not in outside for subject in before[0].subjects])
    errors = np.mean([np.abs(run.score - run.y) for run in before], axis=0)
    return {
        "n": len(errors),
        "mae": mae,
        "mae_over_mean": mae / of_mean,
        "mean_error": error,
        "slope": slope,
        "mae_corrected": mae_after,
        "mean_error_corrected": error_after,
        "slope_corrected": slope_after,
        "outside": int((~inside).sum()),
        "mae_inside": float(errors[inside].mean()) if inside.any() else float("nan"),
        "mae_outside": float(errors[~inside].mean()) if not inside.all() else float("nan"),
    }


def bin_records(one: Predicted) -> Iterator[Record]:
    """Yield a row per bin of age: the MAE, and the mean error with its 95 % t interval over subjects.

    Bins of fewer than `FEWEST` subjects are left out: they would be about persons.
    """
    runs = one.tested()
    ages = runs[0].y
    errors = np.mean([run.score - run.y for run in runs], axis=0)
    absolute = np.mean([np.abs(run.score - run.y) for run in runs], axis=0)
    bins = np.array([band(age, EDGES) for age in ages])
    for name in dict.fromkeys(bins[np.argsort(ages)].tolist()):
        there = bins == name
        if there.sum() < FEWEST:
            continue
        low, high = _interval(errors[there])
        yield {
            "bin": name,
            "n": int(there.sum()),
            "mae": float(absolute[there].mean()),
            "mean_error": float(errors[there].mean()),
            "ci_low": low,
            "ci_high": high,
            "small": bool(there.sum() < SMALL),
        }


def _figures(runs: list[Tested]) -> tuple[float, float, float]:
    """Return MAE, mean error, and the slope of the error on age: years of error per year of age."""
    errors = [(run.score - run.y, run.y) for run in runs]
    slopes = [np.polyfit(age, error, 1)[0] if np.isfinite(error).all() else np.nan for error, age in errors]
    means = [(np.abs(error).mean(), error.mean()) for error, _ in errors]
    mae, error = np.mean(means, axis=0)
    return float(mae), float(error), float(np.mean(slopes))


def _outside(one: Predicted, results: Path) -> set[str]:
    """Return the subjects who are younger or older than all that some seed was trained on."""
    found = set()
    for seed, folds in one.runs.items():
        for fold, (_, run) in folds.items():
            low, high = training_ages(results, one, seed, fold)
            found |= {who for who, age in zip(run.subjects, run.y, strict=True) if not low <= age <= high}
    return found


def _interval(errors: Array) -> tuple[float, float]:
    half = t.ppf(0.975, len(errors) - 1) * errors.std(ddof=1) / np.sqrt(len(errors))
    return float(errors.mean() - half), float(errors.mean() + half)
