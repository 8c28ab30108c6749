"""Figure 1: test performance against trainable parameters, one panel per task and backbone."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from neuropeft.config import Config
from neuropeft.contenders import backbone_label, main_backbones
from neuropeft.evaluate.scores import Score, at_home
from neuropeft.grid import Group, used_tasks
from neuropeft.publish.panel import draw_references, panel_title, references, score_axis
from neuropeft.publish.placing import place_labels
from neuropeft.publish.style import CROWDED, FONT_SIZE, Looks, panels, shared_legend, words_only
from neuropeft.subsets import Subset, fraction

LARGEST_BUBBLE = 600.0  # points squared
PANEL_HEIGHT = 2.6  # inches
DODGE = 1.25  # equal numbers of parameters are drawn this factor apart
NONE = 0.1  # where what trains no parameter is drawn, times the least number of a panel
LEGEND = (
    "areas: in proportion to parameters; bars: SD over seeds; hollow: some missing; equal numbers are drawn "
    "side by side"
)


@dataclass(frozen=True)
class Panel:
    """What a panel shows: in-domain scores of a backbone, and of those beside it, with one subset."""

    task: str
    backbone: str
    subset: Subset
    scores: Sequence[Score]


def draw_tradeoff(config: Config, scores: Sequence[Score], trainable: Mapping[Group, int]) -> Figure:
    """Draw figure 1 at `figures.tradeoff_fraction`, or the nearest subset that a task has."""
    found = chosen_panels(
        config, [score for score in scores if score.values and score.contender.group in trainable]
    )
    if not found:
        return words_only("Figure 1 has nothing to show: no cell has scores yet.")
    figure, axes = panels(len(found), PANEL_HEIGHT, max(len(panel.scores) for panel in found))
    largest = max(1, *(trainable[score.contender.group] for panel in found for score in panel.scores))
    labels = []
    for axis, panel in zip(axes, found, strict=True):
        labels.append(_draw_bubbles(axis, config, panel, trainable, largest))
        draw_references(axis, references(config, scores, panel.task, panel.subset))
        _name_axes(axis, config, panel)
    shared_legend(figure, axes, LEGEND)
    figure.draw_without_rendering()  # settles the layout, which labels are then placed in
    for axis, of_axis in zip(axes, labels, strict=True):
        place_labels(axis, of_axis)
    return figure


def chosen_panels(config: Config, scores: Sequence[Score]) -> list[Panel]:
    """Return a panel for each task and backbone, of the subset that `figures.tradeoff_fraction` chooses."""
    found = []
    main = main_backbones(config)
    for task in used_tasks(config):
        shown = [score for score in at_home(config, scores, task) if score.contender.is_method]
        for backbone in main:
            subsets = {score.contender.subset for score in shown if score.contender.backbone == backbone}
            if subsets:
                nearest = _nearest(subsets, config.figures.tradeoff_fraction)
                of_panel = [
                    score
                    for score in shown
                    if score.contender.subset == nearest
                    and (score.contender.backbone == backbone or score.contender.backbone not in main)
                ]
                of_panel.sort(key=lambda one: (one.contender.backbone != backbone, one.contender.place))
                found.append(Panel(task, backbone, nearest, of_panel))
    return found


def _nearest(subsets: Iterable[Subset], percent: int) -> Subset:
    """Return the fraction that is nearest to a percentage, or the most shots where there is none."""
    return min(
        subsets, key=lambda one: (not one.of_all, abs(one.size - percent) if one.of_all else -one.size, one)
    )


def _draw_bubbles(
    axis: Axes, config: Config, panel: Panel, trainable: Mapping[Group, int], largest: int
) -> list[tuple[Annotation, float]]:
    """Draw a bubble, a mark and an error bar per score; return the labels and radii of the bubbles."""
    labels = []
    places: list[float] = []
    looks = Looks(config)
    on_backbone = Counter(score.contender.backbone for score in panel.scores)
    least = min(filter(None, (trainable[score.contender.group] for score in panel.scores)), default=1)
    for score in panel.scores:
        contender = score.contender
        is_beside = contender.backbone != panel.backbone
        style = looks.of(contender)
        area = LARGEST_BUBBLE * trainable[contender.group] / largest
        x = trainable[contender.group] or NONE * least
        none = "" if trainable[contender.group] else " (none)"
        while x in places:
            x *= DODGE
        places.append(x)
        axis.scatter(x, score.mean, s=area, color=style.colour, alpha=0.3, linewidth=0)
        axis.errorbar(
            x,
            score.mean,
            yerr=None if math.isnan(score.sd) else score.sd,
            fmt=style.marker,
            color=style.colour,
            markerfacecolor=style.colour if score.complete else "white",
            markersize=4,
            elinewidth=0.8,
            label=(contender.label if is_beside else contender.name) + none,
        )
        if len(panel.scores) > CROWDED:  # the legend names the marks
            continue
        name = contender.short
        if is_beside:
            name = f"{contender.owner} {name}" if on_backbone[contender.backbone] > 1 else contender.owner
        name += none
        if not score.complete:
            name += f" ({len(score.values)}/{len(contender.seeds)} seeds)"
        label = axis.annotate(name, (x, score.mean), fontsize=FONT_SIZE, annotation_clip=False)
        # Legible on the lines of the controls.
        label.set_path_effects([withStroke(linewidth=2, foreground="white")])
        labels.append((label, math.sqrt(area / math.pi)))
    axis.set_xscale("log")
    axis.margins(x=0.3, y=0.15)
    low, high = axis.get_xlim()
    # Decades alone, or more marks where there is less than one; matplotlib's own would print over each other.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    return labels


def _name_axes(axis: Axes, config: Config, panel: Panel) -> None:
    axis.set_xlabel("trainable parameters (without the head)")
    score_axis(config, axis, panel.task)
    asked = config.figures.tradeoff_fraction
    share = panel.subset.text
    if panel.subset != fraction(asked):
        share += f" (nearest to {asked} %)"
    title = f"{backbone_label(config, panel.backbone)}: {panel_title(config, panel.scores, panel.task)}"
    axis.set_title(f"{title}\n{share}", loc="left")
