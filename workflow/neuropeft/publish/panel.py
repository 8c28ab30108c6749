"""What panels of score figures share: their title and the lines that scores are judged against."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from neuropeft.config import Config
from neuropeft.evaluate.scores import CONTROL, CONTROL_FRACTION, Score, primary_metric
from neuropeft.publish.labels import CONTROL_LABELS, cohort_label, seeds_text
from neuropeft.publish.style import FONT_SIZE, GREY

CHANCE = 0.5


def panel_title(config: Config, scores: Sequence[Score], task: str) -> str:
    """Return task, cohort, test subjects and seeds of the in-domain scores that a panel shows."""
    cohort = cohort_label(config, config.tasks[task].train)
    n = max((score.n for score in scores if score.n is not None), default=0)
    seeds = max(len(score.expected) for score in scores)
    return f"{task} on {cohort}: n = {n} test subjects, {seeds_text(seeds, seeds)}"


def references(
    config: Config, scores: Sequence[Score], task: str, fraction: int
) -> list[tuple[str, float, str]]:
    """Return (label, value, line style) of what a score must beat, on the task's own test subjects.

    An AUC must beat chance, an error that of predicting the training mean. The linear model on voxels was
    fitted on all training subjects, so it is compared at that fraction only.
    """
    controls = {
        score.group.method: score.mean
        for score in scores
        if (score.group.task, score.group.backbone) == (task, CONTROL)
        and score.metric == primary_metric(config.tasks[task])
        and not score.zero_shot
        and score.values
    }
    lines = []
    if config.tasks[task].kind != "regression":
        lines.append(("chance", CHANCE, "--"))
    elif "mean" in controls:
        lines.append((CONTROL_LABELS["mean"], controls["mean"], "--"))
    if fraction == CONTROL_FRACTION and "ridge_voxels" in controls:
        lines.append((CONTROL_LABELS["ridge_voxels"], controls["ridge_voxels"], ":"))
    return lines


def draw_references(axis: Axes, lines: Sequence[tuple[str, float, str]]) -> None:
    """Draw the lines across the panel, each with its name on it."""
    for label, value, dashes in lines:
        axis.axhline(value, color=GREY, linestyle=dashes, linewidth=0.8, zorder=0)
        axis.annotate(
            label,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=FONT_SIZE,
            color=GREY,
        )
