"""Figures of variants: paths of interpolated weights, and curves of robustness."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropeft.config import Config
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import Group
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.panel import score_axis
from neuropeft.publish.style import DOUBLE_COLUMN, Looks, new_figure, panels, shared_legend, words_only
from neuropeft.publish.variant_scores import Varied, primary
from neuropeft.variant_names import change_of

PANEL_HEIGHT = 2.8  # inches
ROW_HEIGHT = 2.1
CHANGES = {
    "noise": "noise\n(SD, stored units)",
    "bias": "bias field\n(largest logarithm)",
    "contrast": "contrast\n(largest bend)",
    "rotate_deg": "rotation\n(up to degrees)",
}


def draw_interpolation(config: Config, some: Sequence[Varied]) -> Figure:
    """Draw a panel per task and zero-shot cohort: a path per method, from the start to its own weights."""
    paths: dict[tuple[str, str], dict[Group, dict[str, dict[str, Score]]]] = {}
    shown = primary(config, some)
    for one in shown:
        task = one.base.contender.task
        for cohort in config.tasks[task].zero_shot:
            if one.score.cohort in (cohort, config.tasks[task].train):
                of_method = paths.setdefault((task, cohort), {}).setdefault(one.base.contender.group, {})
                of_method.setdefault(one.variant, {})[one.score.cohort] = one.score
    if not paths:
        return words_only("No paths between start and fine-tuned weights: nothing that merges is scored.")
    contenders = {one.base.contender.group: one.base.contender for one in shown}
    figure, axes = panels(len(paths), PANEL_HEIGHT, max(map(len, paths.values())))
    looks = Looks(config)
    for axis, ((task, cohort), methods) in zip(axes, paths.items(), strict=True):
        home = config.tasks[task].train
        for group, shares in methods.items():
            both = [of_share for of_share in shares.values() if len(of_share) == 2]
            x, y = ([of_share[name].mean for of_share in both] for name in (home, cohort))
            look = looks.of(contenders[group])
            style: dict[str, Any] = {"color": look.colour, "marker": look.marker}
            axis.plot(x, y, linestyle=look.dashes, **style, markersize=3, label=contenders[group].label)
            axis.plot(x[-1:], y[-1:], **style, markersize=8, linestyle="")
            axis.plot(x[:1], y[:1], **style, markersize=8, markerfacecolor="white", linestyle="")
        metric = primary_metric(config.tasks[task])
        better = "higher" if metric.higher_is_better else "lower"
        title = metric.title(config.tasks[task].unit)
        axis.set_xlabel(f"{title} on {cohort_label(config, home)}\n{better} is better")
        axis.set_ylabel(f"{title} on {cohort_label(config, cohort)}, zero-shot")
        axis.set_title(task, loc="left")
    ends = sorted({float(one.variant) for one in shown})
    marks = f"share {ends[0]:g} of the fine-tuned weights: large hollow, {ends[-1]:g}: large filled"
    shared_legend(figure, axes, f"{marks}; means over seeds; the head stays the fine-tuned one")
    return figure


def draw_robustness(config: Config, some: Sequence[Varied]) -> Figure:
    """Draw the score of each method by the strength of a change, a row per task and cohort."""
    found: dict[tuple[str, str], dict[str, dict[Group, list[Varied]]]] = {}
    for one in primary(config, some):
        of_kinds = found.setdefault((one.base.contender.task, one.score.cohort), {})
        of_kind = of_kinds.setdefault(change_of(one.variant)[0], {})
        of_kind.setdefault(one.base.contender.group, []).append(one)
    if not found:
        return words_only("No curves of robustness: nothing is scored.")
    kinds = list(config.analyses.robustness)
    figure = new_figure(DOUBLE_COLUMN, ROW_HEIGHT * len(found))
    grid = figure.subplots(len(found), len(kinds), squeeze=False, sharey="row")
    looks = Looks(config)
    for axes, ((task, cohort), of_kinds) in zip(grid, found.items(), strict=True):
        for axis, kind in zip(axes, kinds, strict=True):
            for of_method in of_kinds.get(kind, {}).values():
                _draw_curve(axis, looks, of_method)
            axis.set_xlabel(CHANGES[kind])
        score_axis(config, axes[0], task)
        base = next(of_method[0] for of_kind in of_kinds.values() for of_method in of_kind.values()).base
        zero_shot = ", zero-shot" if base.zero_shot else ""
        axes[0].set_title(f"{task} on {cohort_label(config, cohort)}{zero_shot}, n = {base.n}", loc="left")
    shared_legend(
        figure, grid.ravel().tolist(), "0: scans as they are; means over seeds; intervals are in the table"
    )
    return figure


def _draw_curve(axis: Axes, looks: Looks, of_method: Sequence[Varied]) -> None:
    base, look = of_method[0].base, looks.of(of_method[0].base.contender)
    axis.plot(
        [0.0, *(change_of(one.variant)[1] for one in of_method)],
        [base.mean, *(one.score.mean for one in of_method)],
        **look.line,
        marker=look.marker,
        label=base.contender.label,
    )
