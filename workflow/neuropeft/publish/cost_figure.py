"""Figure 4: test performance against what it costs: bytes stored, time, memory and operations."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from neuropeft.cells.costs import Costs
from neuropeft.config import Config
from neuropeft.contenders import backbone_label
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import Group
from neuropeft.publish.panel import panel_title, score_axis
from neuropeft.publish.style import DOUBLE_COLUMN, GREY, Looks, new_figure, shared_legend, words_only
from neuropeft.publish.tradeoff import Panel, chosen_panels

ROW_HEIGHT = 2.3  # inches
LEGEND = "grey line: nothing is better at that cost or less; hollow: some missing"


class Cost(NamedTuple):
    """A cost of a cell: its key in cost.json, and what an axis calls it."""

    key: str
    label: str
    unit: str


COSTS = (
    Cost("delta_bytes", "stored per cell", "B"),
    Cost("seconds_per_step", "time per step", "s"),
    Cost("peak_memory_bytes", "peak memory", "B"),
    Cost("flops_per_sample", "operations per scan (FLOP)", ""),
)


def draw_costs(config: Config, scores: Sequence[Score], costs: Costs) -> Figure:
    """Draw figure 4: a row per task and backbone, a column per cost, at `figures.tradeoff_fraction`."""
    spent = mean_costs(costs)
    rows = chosen_panels(
        config, [score for score in scores if score.values and score.contender.group in spent]
    )
    if not rows:
        return words_only("Figure 4 has nothing to show: no cell has scores yet.")
    figure = new_figure(DOUBLE_COLUMN, ROW_HEIGHT * len(rows))
    grid = figure.subplots(len(rows), len(COSTS), squeeze=False, sharey="row")
    for axes, panel in zip(grid, rows, strict=True):
        for axis, cost in zip(axes, COSTS, strict=True):
            _draw(axis, config, panel, cost, spent)
        score_axis(config, axes[0], panel.task)
        title = f"{backbone_label(config, panel.backbone)}: {panel_title(config, panel.scores, panel.task)}"
        axes[0].set_title(f"{title}, {panel.subset.text}", loc="left")
    shared_legend(figure, grid.ravel().tolist(), LEGEND)
    return figure


def mean_costs(costs: Costs) -> dict[Group, dict[str, float]]:
    """Return the mean costs of each group's finished cells, as far as they are known."""
    of_group: dict[Group, list[Mapping[str, float]]] = {}
    for cell, cost in costs.items():
        if cost is not None:
            of_group.setdefault(cell.group, []).append(cost)
    found: dict[Group, dict[str, float]] = {}
    for group, some in of_group.items():
        values = {cost.key: [one[cost.key] for one in some if one.get(cost.key)] for cost in COSTS}
        found[group] = {key: fmean(known) for key, known in values.items() if known}
    return found


def _draw(
    axis: Axes, config: Config, panel: Panel, cost: Cost, spent: Mapping[Group, Mapping[str, float]]
) -> None:
    looks = Looks(config)
    points = []
    for score in panel.scores:
        if (x := spent[score.contender.group].get(cost.key)) is None:
            continue
        points.append((x, score.mean))
        style = looks.of(score.contender)
        face = style.colour if score.complete else "white"
        name = score.contender.name
        if score.contender.backbone != panel.backbone:
            name = score.contender.label
        axis.plot(
            x,
            score.mean,
            style.marker,
            color=style.colour,
            markerfacecolor=face,
            linestyle="none",
            label=name,
        )
    axis.set_xlabel(cost.label)
    if not points:
        return
    higher = primary_metric(config.tasks[panel.task]).higher_is_better
    front = list(pareto_front(points, higher))
    axis.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=0.8, zorder=0)
    spread = [x for x, _ in points]
    if max(spread) > 10 * min(spread):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=3))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(2))
    axis.margins(x=0.12)
    axis.xaxis.set_major_formatter(EngFormatter(unit=cost.unit))


def pareto_front(
    points: Sequence[tuple[float, float]], higher_is_better: bool
) -> Iterator[tuple[float, float]]:
    """Yield the points (cost, score) of which no cheaper or equally cheap one scores as well, by cost."""
    sign = 1 if higher_is_better else -1
    best = -float("inf")
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if sign * score > best:
            best = sign * score
            yield cost, score
