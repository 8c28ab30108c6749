"""Figures 2 and 3: test performance against the amount of training data, a curve per method."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropeft.config import Config, ViT
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import cells, used_tasks
from neuropeft.probe_grid import is_probe
from neuropeft.publish.labels import backbone_label, group_label, is_control
from neuropeft.publish.panel import FITTED, TRIVIAL, draw_references, panel_title, references, score_axis
from neuropeft.publish.records import Costs
from neuropeft.publish.style import GREY, group_look, panels, shared_legend, words_only
from neuropeft.subsets import Subset

DRAWN_PROBE = "probe_concat"  # one of them is enough to see what the frozen backbone knows
PANEL_HEIGHT = 2.8  # inches
LEGEND = "band: SD over seeds; dots: seeds; hollow: some missing"
DODGE = 0.05  # of the distance between subsets, so that curves do not hide each other


def curve_backbones(config: Config) -> dict[str, str | None]:
    """Return which ViT figures 2 (the smaller) and 3 (the larger) show, as the paper's ViT-S and ViT-B.

    With one ViT it is figure 3's; with more than two, the two that come last in size are shown.
    """
    sizes = {
        name: spec.width**2 * spec.depth for name, spec in config.backbones.items() if isinstance(spec, ViT)
    }
    used = sorted(
        {cell.backbone for cell in cells(config)} & set(sizes), key=lambda name: (sizes[name], name)
    )
    return {"figure2": used[-2] if len(used) > 1 else None, "figure3": used[-1] if used else None}


def draw_curves(
    config: Config, scores: Sequence[Score], costs: Costs, figure_name: str, backbone: str | None
) -> Figure:
    """Draw a panel per task that has several subsets with this ViT, beside the CNNs' curves."""
    number = figure_name.removeprefix("figure")
    if backbone is None:
        return words_only(f"Figure {number} has nothing to show: the grid has no further ViT.")
    shown = {task: _curve_scores(config, scores, task, backbone) for task in used_tasks(config)}
    shown = {task: of_task for task, of_task in shown.items() if of_task}
    if not shown:
        label = backbone_label(backbone)
        return words_only(f"Figure {number} has nothing to show: no task has several subsets with {label}.")
    figure, axes = panels(len(shown), PANEL_HEIGHT)
    for axis, (task, of_task) in zip(axes, shown.items(), strict=True):
        _draw_panel(axis, config, scores, of_task, costs, task, backbone)
    shared_legend(figure, axes, LEGEND)
    return figure


def _curve_scores(config: Config, scores: Sequence[Score], task: str, backbone: str) -> list[Score]:
    """Return in-domain scores of the methods, and of one probe, that have several subsets."""
    found = [
        score
        for score in scores
        if score.group.task == task
        and score.metric == primary_metric(config.tasks[task]).name
        and not score.zero_shot
        and not is_control(config, score.group)
        and (score.group.backbone == backbone or not isinstance(config.backbones[score.group.backbone], ViT))
        and (
            not is_probe(score.group) or (score.group.backbone, score.group.method) == (backbone, DRAWN_PROBE)
        )
    ]
    trained = [score.group for score in found if not is_probe(score.group)]
    if len({group.subset for group in trained if group.backbone == backbone}) < 2:
        return []
    curves = [_curve(score) for score in found]
    return [score for score in found if curves.count(_curve(score)) > 1]


def _curve(score: Score) -> tuple[str, str, str]:
    return score.group.backbone, score.group.pretraining, score.group.method


def _draw_panel(
    axis: Axes,
    config: Config,
    scores: Sequence[Score],
    shown: Sequence[Score],
    costs: Costs,
    task: str,
    backbone: str,
) -> None:
    subjects = _training(costs, task, "train_subjects")
    subsets = sorted({score.group.subset for score in shown})
    if all(subset in subjects for subset in subsets):  # shots and fractions share an axis
        subsets.sort(key=subjects.__getitem__)
    curves = sorted({_curve(score) for score in shown}, key=lambda curve: _rank(config, curve, backbone))
    for index, curve in enumerate(curves):
        of_curve = [score for score in shown if _curve(score) == curve]
        shift = DODGE * (index - (len(curves) - 1) / 2)
        _draw_curve(axis, config, of_curve, subsets, shift)
    # Of the mean, whose error hardly depends on the subset, that of the largest.
    draw_references(axis, _lines(config, scores, task, subsets[-1], TRIVIAL))
    _draw_fitted(axis, config, scores, task, subsets)
    fractions_alone = all(subset.of_all for subset in subsets)
    numbers = _training(costs, task, "train_scans") if fractions_alone else subjects
    axis.set_xticks(
        range(len(subsets)),
        [f"{one.label}\n{numbers[one]:,}" if one in numbers else one.label for one in subsets],
    )
    axis.margins(x=0.08)
    axis.set_xlabel(
        "share of the training subjects, and scans" if fractions_alone else "labelled training subjects"
    )
    score_axis(config, axis, task)
    of_cells = [score for score in shown if not is_probe(score.group)]
    done = sum(len(score.values) for score in of_cells)
    wanted = sum(len(score.expected) for score in of_cells)
    title = panel_title(config, shown, task)
    folds = len(config.splits.fold_numbers)
    if done < wanted:
        title += f", {folds * done}/{folds * wanted} cells"
    axis.set_title(title, loc="left")


def _lines(
    config: Config, scores: Sequence[Score], task: str, subset: Subset, style: str
) -> list[tuple[str, float, str]]:
    return [line for line in references(config, scores, task, subset) if line[2] == style]


def _draw_fitted(
    axis: Axes, config: Config, scores: Sequence[Score], task: str, subsets: Sequence[Subset]
) -> None:
    """Draw the curve of the linear model on voxels, which is fitted on each subset."""
    found = {place: _lines(config, scores, task, one, FITTED) for place, one in enumerate(subsets)}
    points = [(place, value, label) for place, lines in found.items() for label, value, _ in lines]
    if points:
        places, values, labels = zip(*points, strict=True)
        axis.plot(places, values, FITTED, marker="*", color=GREY, markersize=6, zorder=0, label=labels[0])


def _rank(config: Config, curve: tuple[str, str, str], backbone: str) -> tuple[bool, int, str]:
    methods = [*config.methods, DRAWN_PROBE]
    return curve[0] != backbone, methods.index(curve[2]), curve[1]


def _draw_curve(
    axis: Axes, config: Config, scores: Sequence[Score], subsets: Sequence[Subset], shift: float
) -> None:
    style = group_look(config, scores[0].group)
    of_subset = {score.group.subset: score for score in scores}
    # A subset without any seed breaks the line.
    points = [(place + shift, of_subset[one]) for place, one in enumerate(subsets) if one in of_subset]
    x = [place for place, _ in points]
    mean = [score.mean for _, score in points]
    spread = [0.0 if math.isnan(score.sd) else score.sd for _, score in points]
    axis.fill_between(
        x,
        [m - s for m, s in zip(mean, spread, strict=True)],
        [m + s for m, s in zip(mean, spread, strict=True)],
        color=style.colour,
        alpha=0.12,
        linewidth=0,
    )
    label = group_label(config, scores[0].group)
    axis.plot(x, mean, color=style.colour, linestyle=style.dashes, marker=style.marker, label=label)
    for place, score in points:
        axis.plot(
            [place] * len(score.values), list(score.values.values()), ".", color=style.colour, alpha=0.5, ms=3
        )
        if score.values and not score.complete:
            axis.plot(place, score.mean, marker=style.marker, color=style.colour, markerfacecolor="white")


def _training(costs: Costs, task: str, counted: str) -> dict[Subset, int]:
    """Return how many training subjects, or scans, the cells of each subset of a task have had."""
    found: dict[Subset, list[int]] = {}
    for cell, cost in costs.items():
        if cell.task == task and cost is not None and cost.get(counted):
            found.setdefault(cell.subset, []).append(int(cost[counted]))
    return {subset: statistics.median_low(numbers) for subset, numbers in found.items()}
