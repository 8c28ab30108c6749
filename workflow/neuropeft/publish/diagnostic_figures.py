"""Figures of subjects: reliability of probabilities, and errors of brain age by age."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropeft.config import Config
from neuropeft.evaluate.brain_age import bin_records
from neuropeft.evaluate.calibration import judged
from neuropeft.evaluate.people import Predicted
from neuropeft.grouping import grouped
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import GREY, Looks, panels, shared_legend, words_only

PANEL_HEIGHT = 2.8  # inches
IN_BIN = 15  # subjects, at least
MOST_BINS = 10
DODGED = 0.6  # of the distance between bins, all methods together


def draw_reliability(config: Config, predicted: Sequence[Predicted]) -> Figure:
    """Draw how frequent the positive class is among subjects of a predicted probability, by cohort.

    Of more than two classes: how often the likeliest one is the true one.
    """
    from sklearn.calibration import calibration_curve

    found = _panels(predicted)
    if not found:
        return words_only("No reliability curves: no task has classes and all its seeds.")
    figure, axes = panels(len(found), PANEL_HEIGHT, max(map(len, found)))
    looks = Looks(config)
    for axis, some in zip(axes, found, strict=True):
        axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--", label="perfectly calibrated")
        for one in some:
            runs, look = one.tested(), looks.of(one.contender)
            pairs = zip(*(judged(run.y, run.score) for run in runs), strict=True)
            y, probability = map(np.concatenate, pairs)
            bins = int(np.clip(len(runs[0].y) // IN_BIN, 2, MOST_BINS))
            share, mean = calibration_curve(y, np.clip(probability, 0, 1), n_bins=bins, strategy="quantile")
            axis.plot(mean, share, **look.line, marker=look.marker, label=one.contender.label)
        more = runs[0].score.ndim > 1
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.set_xlabel("probability of the likeliest class" if more else "predicted probability")
        axis.set_ylabel("share for which it is true" if more else "share of the positive class")
        _name(axis, config, some[0])
    shared_legend(figure, axes, "bins of equally many subjects, all seeds")
    return figure


def draw_age_errors(config: Config, predicted: Sequence[Predicted]) -> Figure:
    """Draw the mean error of each method in bins of age, a panel per cohort."""
    found = _panels(predicted)
    if not found:
        return words_only("No errors of brain age: no task predicts age with all its seeds.")
    figure, axes = panels(len(found), PANEL_HEIGHT, max(map(len, found)))
    looks = Looks(config)
    for axis, some in zip(axes, found, strict=True):
        axis.axhline(0, color=GREY, linewidth=0.8)
        for index, one in enumerate(some):
            rows, look = list(bin_records(one)), looks.of(one.contender)  # the same bins for all
            shift = DODGED * ((index + 0.5) / len(some) - 0.5)
            middle = np.array([row["mean_error"] for row in rows], float)
            low, high = (np.array([row[name] for row in rows], float) for name in ("ci_low", "ci_high"))
            axis.errorbar(
                np.arange(len(rows)) + shift,
                middle,
                yerr=np.nan_to_num([middle - low, high - middle]),
                fmt=look.marker,
                color=look.colour,
                markersize=3.5,
                elinewidth=0.8,
                label=one.contender.label,
            )
        ticks = [f"{row['bin']}\n{row['n']}".replace(" and above", "+") for row in rows]
        axis.set_xticks(range(len(rows)), [tick.replace(" to ", "-") for tick in ticks])
        axis.set_xlabel("age in years, and subjects")
        axis.set_ylabel("predicted minus true age (years)")
        _name(axis, config, some[0])
    shared_legend(figure, axes, "mean over seeds; bars: 95 % interval over subjects")
    return figure


def _panels(predicted: Sequence[Predicted]) -> list[list[Predicted]]:
    """Return the predictions of each task and cohort."""
    found = grouped(predicted, lambda one: (one.contender.task, one.cohort))
    return [sorted(some, key=lambda one: one.contender.place) for some in found.values()]


def _name(axis: Axes, config: Config, one: Predicted) -> None:
    zero_shot = ", zero-shot" if one.zero_shot else ""
    n = len(one.tested()[0].y)
    axis.set_title(
        f"{one.contender.task} on {cohort_label(config, one.cohort)}{zero_shot}\n"
        f"n = {n}, {one.contender.subset.text}",
        loc="left",
    )
