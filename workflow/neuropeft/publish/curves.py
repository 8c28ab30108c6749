"""Figures 2 and 3: test performance against the amount of training data, a curve per method."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropeft.cells.costs import Costs, subset_sizes
from neuropeft.config import Config
from neuropeft.contenders import Contender, backbone_label, main_backbones
from neuropeft.evaluate.scores import Score, at_home
from neuropeft.grid import used_tasks
from neuropeft.grouping import grouped
from neuropeft.publish.panel import FITTED, TRIVIAL, draw_references, panel_title, references, score_axis
from neuropeft.publish.style import GREY, Look, Looks, panels, shared_legend, words_only
from neuropeft.subsets import Subset

DRAWN_PROBE = "probe_concat"  # one of them is enough to see what the frozen backbone knows
PANEL_HEIGHT = 2.8  # inches
LEGEND = "band: SD over seeds; dots: seeds; hollow: some missing"
MOST_DODGED = 0.6  # of all curves of a panel together
DODGE = 0.05  # of the distance between subsets, so that curves do not hide each other


def curve_backbones(config: Config) -> dict[str, list[str]]:
    """Return which backbones figure 3 (the first one) and figure 2 (the others) show."""
    first, *others = main_backbones(config)
    return {"figure2": others, "figure3": [first]}


def draw_curves(
    config: Config, scores: Sequence[Score], costs: Costs, figure_name: str, backbones: Sequence[str]
) -> Figure:
    """Draw a panel per backbone and task that has several subsets, with what stands beside the backbone."""
    number = figure_name.removeprefix("figure")
    if not backbones:
        return words_only(f"Figure {number} has nothing to show: the grid has no further backbone.")
    shown = {
        (backbone, task): _curve_scores(config, scores, task, backbone)
        for backbone in backbones
        for task in used_tasks(config)
    }
    shown = {panel: of_panel for panel, of_panel in shown.items() if of_panel}
    if not shown:
        labels = " or ".join(backbone_label(config, backbone) for backbone in backbones)
        return words_only(f"Figure {number} has nothing to show: no task has several subsets with {labels}.")
    most = max(len({score.contender.line for score in of_panel}) for of_panel in shown.values())
    figure, axes = panels(len(shown), PANEL_HEIGHT, most)
    for axis, ((backbone, task), of_panel) in zip(axes, shown.items(), strict=True):
        _draw_panel(axis, config, scores, of_panel, costs, task, backbone)
    shared_legend(figure, axes, LEGEND)
    return figure


def _curve_scores(config: Config, scores: Sequence[Score], task: str, backbone: str) -> list[Score]:
    """Return in-domain scores of the methods, and of one probe, that have several subsets."""
    others = [name for name in main_backbones(config) if name != backbone]
    of_task = at_home(config, scores, task)
    found = [score for score in of_task if _is_drawn(score.contender, backbone, others)]
    trained = [score.contender for score in found if score.contender.sort == "cells"]
    if len({one.subset for one in trained if one.backbone == backbone}) < 2:
        return []
    curves = [score.contender.line for score in found]
    return [score for score in found if curves.count(score.contender.line) > 1]


def _is_drawn(contender: Contender, backbone: str, others: Sequence[str]) -> bool:
    if contender.sort == "probes":
        return (contender.backbone, contender.method) == (backbone, DRAWN_PROBE)
    return contender.is_method and contender.backbone not in others


def _draw_panel(
    axis: Axes,
    config: Config,
    scores: Sequence[Score],
    shown: Sequence[Score],
    costs: Costs,
    task: str,
    backbone: str,
) -> None:
    subjects = subset_sizes(costs, task, "train_subjects")
    subsets = sorted({score.contender.subset for score in shown})
    if all(subset in subjects for subset in subsets):  # shots and fractions share an axis
        subsets.sort(key=subjects.__getitem__)
    beside_last = sorted(shown, key=lambda one: (one.contender.backbone != backbone, one.contender.place))
    of_line = grouped(beside_last, lambda score: score.contender.line)
    looks, dodge = Looks(config), min(DODGE, MOST_DODGED / len(of_line))
    for index, of_curve in enumerate(of_line.values()):
        shift = dodge * (index - (len(of_line) - 1) / 2)
        _draw_curve(axis, looks.of(of_curve[0].contender), of_curve, subsets, shift)
    # Of the mean, whose error hardly depends on the subset, that of the largest.
    draw_references(axis, _lines(config, scores, task, subsets[-1], TRIVIAL))
    _draw_fitted(axis, config, scores, task, subsets)
    fractions_alone = all(subset.of_all for subset in subsets)
    numbers = subset_sizes(costs, task, "train_scans") if fractions_alone else subjects
    axis.set_xticks(
        range(len(subsets)),
        [f"{one.label}\n{numbers[one]:,}" if one in numbers else one.label for one in subsets],
    )
    axis.margins(x=0.08)
    axis.set_xlabel(
        "share of the training subjects, and scans" if fractions_alone else "labelled training subjects"
    )
    score_axis(config, axis, task)
    of_cells = [score for score in shown if score.contender.sort == "cells"]
    done = sum(len(score.values) for score in of_cells)
    wanted = sum(len(score.contender.seeds) for score in of_cells)
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


def _draw_curve(
    axis: Axes, style: Look, scores: Sequence[Score], subsets: Sequence[Subset], shift: float
) -> None:
    of_subset = {score.contender.subset: score for score in scores}
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
    label = scores[0].contender.label
    axis.plot(x, mean, **style.line, marker=style.marker, label=label)
    for place, score in points:
        axis.plot(
            [place] * len(score.values), list(score.values.values()), ".", color=style.colour, alpha=0.5, ms=3
        )
        if score.values and not score.complete:
            axis.plot(place, score.mean, marker=style.marker, color=style.colour, markerfacecolor="white")
