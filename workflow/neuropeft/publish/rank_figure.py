"""Critical-difference diagrams (Demsar 2006): mean ranks, and bars over methods that are not told apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropeft.config import Backbone, Config, Method, label_of_kind
from neuropeft.evaluate.across import friedman, pairwise, too_few
from neuropeft.evaluate.blocks import Ranking, on_one_scale, rankings, ranks
from neuropeft.evaluate.compare import ALPHA
from neuropeft.evaluate.scores import Score
from neuropeft.publish.cells import p_equals
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import BLACK, DOUBLE_COLUMN, GREY, new_figure, words_only
from neuropeft.tasks.base import Array

LINE = 0.17  # inches, of a label
ABOVE = 0.6  # inches, for the title and the axis
BAR = 0.35  # label heights between bars
MOST_TICKS = 20
BESIDE = 0.6  # room for labels on either side, over the length of the axis


def draw_ranks(config: Config, scores: Sequence[Score]) -> Figure:
    """Draw a panel for each backbone and start that has several methods with common blocks."""
    found = rankings(config, scores)
    if not found:
        return words_only("No diagram of ranks: no three methods have a task, cohort and subset in common.")
    heights = [ABOVE + LINE * (-(-len(one.methods) // 2) + BAR * len(one.methods) / 2) for one in found]
    figure = new_figure(DOUBLE_COLUMN, sum(heights) + 0.2 * len(heights))
    axes = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, ranking in zip(axes, found, strict=True):
        _draw(axis, config, ranking, on_one_scale(config, ranking, scores))
    return figure


def cliques(order: Sequence[int], p: Array) -> list[tuple[int, int]]:
    """Return the first and last place of each longest run of neighbours of which no pair is told apart.

    `order` has the methods, the best first, and `p` the p-value of each pair, [methods, methods].
    """
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and (p[order[last + 1], order[first : last + 1]] >= ALPHA).all():
            last += 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _draw(axis: Axes, config: Config, ranking: Ranking, values: Array) -> None:
    mean_rank = np.mean([ranks(row) for row in ranking.scores], axis=0)
    order = np.argsort(mean_rank, kind="stable").tolist()
    count, half = len(order), -(-len(order) // 2)
    values = values[np.isfinite(values).all(axis=1)]
    p = pairwise(values) if len(values) else np.ones((count, count))
    bars = cliques(order, p)
    top, beside = BAR * (len(bars) + 1), BESIDE * (count - 1)
    for place, one in enumerate(order):
        rank, left = mean_rank[one], place < half
        y = -top - (place if left else count - 1 - place) - 0.5
        edge = 1 - beside / 8 if left else count + beside / 8
        axis.plot([rank, rank, edge], [0, y, y], color=GREY, linewidth=0.7)
        axis.plot(rank, 0, "o", color=BLACK, markersize=3, zorder=3)
        label = f"{label_of_kind(Method, ranking.methods[one])} ({rank:.1f})"
        axis.annotate(
            label,
            (edge, y),
            xytext=(-3 if left else 3, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
        )
    for height, (first, last) in enumerate(bars, start=1):
        span = mean_rank[order[first]] - 0.03, mean_rank[order[last]] + 0.03
        axis.plot(span, [-BAR * height] * 2, color=BLACK, linewidth=2.5, solid_capstyle="butt")
    axis.plot([1, count], [0, 0], color=BLACK, linewidth=0.8)
    for tick in range(1, count + 1, -(-count // MOST_TICKS)):
        axis.plot([tick, tick], [0, 0.2], color=BLACK, linewidth=0.8)
        axis.text(tick, 0.3, str(tick), ha="center", va="bottom")
    axis.set_xlim(1 - beside, count + beside)
    axis.set_ylim(-top - half - 0.2, 1.3)
    axis.set_axis_off()
    axis.set_title(_title(config, ranking, len(values)), loc="left")


def _title(config: Config, ranking: Ranking, blocks: int) -> str:
    count = len(ranking.methods)
    few = too_few(blocks, count * (count - 1) // 2)
    cohorts = ", ".join(cohort_label(config, one) for one in ranking.cohorts)
    return (
        f"{label_of_kind(Backbone, ranking.backbone)} from {ranking.pretraining}: mean ranks over "
        f"{len(ranking.blocks)} blocks of {cohorts}; 1 is the best\n"
        f"Friedman {p_equals(friedman(ranking))}; "
        + ("too few blocks to tell any two apart" if few else "bars: not told apart (Wilcoxon, Holm)")
    )
