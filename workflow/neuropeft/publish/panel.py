"""What panels of score figures share: their title and the lines that scores are judged against."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from neuropeft.config import Config
from neuropeft.contenders import MEAN
from neuropeft.evaluate.scores import Score, at_home, primary_metric
from neuropeft.publish.labels import cohort_label, seeds_text
from neuropeft.publish.style import GREY
from neuropeft.subsets import Subset
from neuropeft.tasks import kind_of

VOXELS = "ridge_voxels"
TRIVIAL, FITTED = "--", ":"  # line styles: what needs no fit, and a linear model


def panel_title(config: Config, scores: Sequence[Score], task: str) -> str:
    """Return task, cohort, test subjects and seeds of the in-domain scores that a panel shows."""
    cohort = cohort_label(config, config.tasks[task].train)
    n = max((score.n for score in scores if score.n is not None), default=0)
    seeds = max(len(score.contender.seeds) for score in scores)
    return f"{task} on {cohort}\nn = {n} test subjects, {seeds_text(config, seeds)}"


def score_axis(config: Config, axis: Axes, task: str) -> None:
    """Name the y axis after the metric, with its unit, and tell which way is better."""
    metric = primary_metric(config.tasks[task])
    better = "higher" if metric.higher_is_better else "lower"
    axis.set_ylabel(f"test {metric.title(config.tasks[task].unit)}\n{better} is better")


def references(
    config: Config, scores: Sequence[Score], task: str, subset: Subset
) -> list[tuple[str, float, str]]:
    """Return (label, value, line style) of what a score must beat, on the task's own test subjects.

    An AUC must beat chance, an error that of predicting the training mean; both must beat the linear model on
    voxels that was fitted on the same subset.
    """
    controls = {
        score.contender.method: (f"control: {score.contender.short}", score.mean)
        for score in at_home(config, scores, task)
        if score.contender.sort == "controls" and score.contender.subset == subset and score.values
    }
    lines = []
    if (chance := kind_of(config.tasks[task]).chance) is not None:
        lines.append(("chance", chance, TRIVIAL))
    elif MEAN in controls:
        lines.append((*controls[MEAN], TRIVIAL))
    if VOXELS in controls:
        lines.append((*controls[VOXELS], FITTED))
    return lines


def draw_references(axis: Axes, lines: Sequence[tuple[str, float, str]]) -> None:
    """Draw the lines across the panel; the legend names them."""
    for label, value, dashes in lines:
        axis.axhline(value, color=GREY, linestyle=dashes, linewidth=0.8, zorder=0, label=label)
