"""Figure 1: test performance against trainable parameters, one panel per task and ViT."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from neuropeft.config import Config, ViT
from neuropeft.evaluate.metrics import HIGHER_IS_BETTER
from neuropeft.evaluate.scores import Group, Score, primary_metric
from neuropeft.grid import used_tasks
from neuropeft.publish.labels import (
    backbone_label,
    is_control,
    method_label,
    metric_label,
)
from neuropeft.publish.panel import draw_references, panel_title, references
from neuropeft.publish.style import FONT_SIZE, look, panels, words_only

LARGEST_BUBBLE = 600.0  # points squared
PANEL_HEIGHT = 2.7  # inches
LABEL_GAP = 3.0  # points between a bubble and its label


@dataclass(frozen=True)
class Panel:
    """What one panel shows: the in-domain scores of a ViT and the CNNs on a task, at one fraction."""

    task: str
    backbone: str
    fraction: int
    scores: Sequence[Score]


def draw_tradeoff(config: Config, scores: Sequence[Score], trainable: Mapping[Group, int]) -> Figure:
    """Draw figure 1 at `figures.tradeoff_fraction`, or the nearest fraction that a task has."""
    found = _panels(config, scores)
    if not found:
        return words_only("Figure 1 has nothing to show: no cell of a ViT has scores yet.")
    figure, axes = panels(len(found), PANEL_HEIGHT)
    counts = [trainable[s.group] for panel in found for s in panel.scores if s.group in trainable]
    for axis, panel in zip(axes, found, strict=True):
        _draw_panel(axis, config, scores, panel, trainable, max(counts, default=1))
    figure.draw_without_rendering()  # settles the layout, which labels are then placed in
    for axis in axes:
        _place_labels(axis)
    return figure


def _panels(config: Config, scores: Sequence[Score]) -> list[Panel]:
    found = []
    for task in used_tasks(config):
        shown = [
            score
            for score in scores
            if score.group.task == task
            and score.metric == primary_metric(config.tasks[task])
            and not score.zero_shot
            and score.values
            and not is_control(config, score.group)
        ]
        vits = [name for name, spec in config.backbones.items() if isinstance(spec, ViT)]
        for backbone in vits:
            fractions = {score.group.fraction for score in shown if score.group.backbone == backbone}
            if fractions:
                wanted = config.figures.tradeoff_fraction
                nearest = min(fractions, key=lambda fraction: (abs(fraction - wanted), fraction))
                of_panel = [
                    score
                    for score in shown
                    if score.group.fraction == nearest
                    and (score.group.backbone == backbone or score.group.backbone not in vits)
                ]
                found.append(Panel(task, backbone, nearest, of_panel))
    return found


def _draw_panel(
    axis: Axes,
    config: Config,
    scores: Sequence[Score],
    panel: Panel,
    trainable: Mapping[Group, int],
    largest: int,
) -> None:
    task = config.tasks[panel.task]
    methods = list(config.methods)
    for score in panel.scores:
        parameters = trainable.get(score.group)
        if parameters is None:
            continue
        of_cnn = score.group.backbone != panel.backbone
        style = look(methods.index(score.group.method))
        area = LARGEST_BUBBLE * parameters / largest
        face = "none" if of_cnn else style.colour
        axis.scatter(
            parameters, score.mean, s=area, facecolor=face, edgecolor=style.colour, alpha=0.35, linewidth=1
        )
        error = None if math.isnan(score.sd) else score.sd
        axis.errorbar(
            parameters,
            score.mean,
            yerr=error,
            fmt=style.marker,
            color=style.colour,
            markerfacecolor="white" if of_cnn or not score.complete else style.colour,
            markersize=4,
            elinewidth=0.8,
        )
        label = backbone_label(score.group.backbone) if of_cnn else method_label(config, score.group.method)
        if not score.complete:
            label += f" ({len(score.values)}/{len(score.expected)} seeds)"
        axis.annotate(label, (parameters, score.mean), fontsize=FONT_SIZE, color="black", gid=f"{area:.1f}")
    axis.set_xscale("log")
    draw_references(axis, references(config, scores, panel.task, panel.fraction))
    axis.margins(x=0.22, y=0.18)
    axis.set_xlabel("trainable parameters (bubble area in proportion)")
    better = "higher" if HIGHER_IS_BETTER[primary_metric(task)] else "lower"
    axis.set_ylabel(f"test {metric_label(task, primary_metric(task))}, {better} is better")
    place = panel_title(config, panel.scores, panel.task)
    asked = config.figures.tradeoff_fraction
    share = f"{panel.fraction} % of the training subjects"
    if panel.fraction != asked:
        share += f" ({asked} % is not in the grid)"
    axis.set_title(f"{backbone_label(panel.backbone)}, {place}\n{share}; bars: SD", loc="left")


def _place_labels(axis: Axes) -> None:
    """Move each label to the first place around its bubble where it covers no other label or mark."""
    figure = axis.figure
    points = figure.dpi / 72
    labels = [text for text in axis.texts if text.get_gid()]
    centres = [axis.transData.transform(text.xy) for text in labels]  # type: ignore[attr-defined]
    taken = [Bbox.from_bounds(x - 4 * points, y - 4 * points, 8 * points, 8 * points) for x, y in centres]
    taken += [text.get_window_extent() for text in axis.texts if not text.get_gid()]
    inside = axis.get_window_extent()
    for label, (x, y) in zip(labels, centres, strict=True):
        radius = math.sqrt(float(label.get_gid() or 0) / math.pi) * points
        size = label.get_window_extent()
        options = list(_places(x, y, size.width, size.height, radius, LABEL_GAP * points))
        best = min(options, key=lambda box: _cost(box, taken, inside))
        taken.append(best)
        label.set_gid(None)
        label.set_in_layout(False)
        left, bottom = axis.transData.inverted().transform((best.x0, best.y0))
        label.set_position((left, bottom))
        label.set_verticalalignment("bottom")


def _places(x: float, y: float, width: float, height: float, radius: float, gap: float) -> list[Bbox]:
    boxes = []
    for step in (0.0, 1.0, 2.0, 3.0):
        away = max(radius, 4) + gap + step * height
        for across, up in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            left = x - width / 2 + across * (away + width / 2)
            bottom = y - height / 2 + up * (away + height / 2)
            boxes.append(Bbox.from_bounds(left, bottom, width, height))
    return boxes


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return the covered area; leaving the panel is worse than covering a mark."""
    covered = sum(_common_area(box, other) for other in taken)
    return covered + 10 * (box.width * box.height - _common_area(box, inside))


def _common_area(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else common.width * common.height
