"""Loss curves of pretraining and fine-tuning, as figures and as data."""

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neuropeft import layout
from neuropeft.cells.costs import cell_folder
from neuropeft.config import Config
from neuropeft.contenders import backbone_label, contenders, main_backbones
from neuropeft.files import read_tsv
from neuropeft.grid import Cell, Group, cells, encoders
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import BLACK, GREY, Looks, look, panels, shared_legend, words_only
from neuropeft.tasks import kind_of

PANEL_HEIGHT = 2.3  # inches
LEAST_HEIGHT = 1.6
PAGE_HEIGHT = 9.0
PRETRAINING_COLUMNS = (
    "pretraining",
    "backbone",
    "fold",
    "step",
    "lr",
    "train_loss",
    "val_loss",
    "template_loss",
    "participation_ratio",
    "probe_age",
    "probe_sex",
    "seconds",
)
FINETUNING_COLUMNS = (
    "task",
    "backbone",
    "pretraining",
    "method",
    "subset",
    "seed",
    "fold",
    "step",
    "lr",
    "train_loss",
    "val_loss",
    "val_metric",
    "seconds",
)
SIDES = {"train_loss": "training", "val_loss": "validation"}
PROBES = ("age", "sex", "csf_share", "ventricle_mm", "thinning")  # that are drawn; history.csv has all

Row = dict[str, str]
Encoder = tuple[str, str, int]  # pretraining, backbone, fold


def pretraining_histories(config: Config, results: Path) -> dict[Encoder, list[Row]]:
    """Return the validations of every (pretraining, backbone, fold) that has run."""
    paths = {encoder: layout.PRETRAINING_HISTORY.at(results, **encoder.names) for encoder in encoders(config)}
    return {encoder: read_tsv(path) for encoder, path in paths.items() if path.is_file()}


def finetuning_histories(config: Config, results: Path) -> dict[Cell, list[Row]]:
    """Return the validations of every cell that has run."""
    paths = {cell: cell_folder(results, cell) / "history.csv" for cell in cells(config)}
    return {cell: read_tsv(path) for cell, path in paths.items() if path.is_file()}


def draw_pretraining_losses(config: Config, histories: dict[Encoder, list[Row]]) -> Figure:
    """Draw each pretraining in two panels: its losses, and what its features know of people.

    Of the encoders of several folds the first is drawn; losses_pretraining.csv has them all. The loss of
    predicting the template is drawn beside a masked autoencoder's: one that is not below it has learnt
    nothing of any individual.
    """
    if not histories:
        return words_only("No pretraining loss to show: nothing has been pretrained.")
    first: dict[tuple[str, str], tuple[int, list[Row]]] = {}
    for (pretraining, backbone, fold), rows in sorted(histories.items()):
        first.setdefault((pretraining, backbone), (fold, rows))
    figure, axes = panels(2 * len(first), PANEL_HEIGHT)
    for number, ((pretraining, backbone), (fold, rows)) in enumerate(first.items()):
        trained = config.trained[pretraining]
        title = f"{backbone_label(config, backbone)}, {pretraining} on {cohort_label(config, trained.cohort)}"
        title += f", fold {fold}" if fold else ""
        _draw_losses(axes[2 * number], rows, f"{title}{_verdict(rows)}")
        axes[2 * number].set_ylabel(trained.loss_label)
        _draw_features(
            axes[2 * number + 1], rows, f"its features: {backbone_label(config, backbone)}, {pretraining}"
        )
    shared_legend(figure, axes, "probe: by a linear model on the frozen features of held-out scans")
    return figure


def _draw_losses(axis: Axes, rows: list[Row], title: str) -> None:
    for index, (column, label) in enumerate(SIDES.items()):
        style = look(index)
        axis.plot(*_curve(rows, column), **style.line, label=label)
    if "template_loss" in rows[-1]:
        axis.plot(*_curve(rows, "template_loss"), color=GREY, linestyle=":", label="predicting the template")
    axis.set_title(title, loc="left")
    _steps(axis)


def _verdict(rows: list[Row]) -> str:
    template = rows[-1].get("template_loss")
    beaten = template is None or float(rows[-1]["val_loss"]) < float(template)
    return "" if beaten else "\nno better than the template: it has learnt no individual"


def _draw_features(axis: Axes, rows: list[Row], title: str) -> None:
    """Draw the probes of the frozen features and over how many directions these spread."""
    known = [name for name in PROBES if f"probe_{name}" in rows[-1]]
    for name in known:
        style = look(len(SIDES) + PROBES.index(name))
        label = f"probe: {name.replace('_', ' ')}"
        axis.plot(*_curve(rows, f"probe_{name}"), **style.line, label=label)
    axis.set_ylim(-0.6, 1)
    axis.set_ylabel("correlation" if known else "nothing known to probe for")
    spread = axis.twinx()
    spread.plot(*_curve(rows, "participation_ratio"), color=BLACK, linewidth=0.8, linestyle="-.")
    axis.plot([], [], color=BLACK, linewidth=0.8, linestyle="-.", label="participation ratio (right)")
    spread.set_ylim(bottom=0)
    spread.set_ylabel("participation ratio")
    axis.set_title(title, loc="left")
    _steps(axis)


def draw_finetuning_losses(config: Config, histories: dict[Cell, list[Row]]) -> Figure:
    """Draw training and validation loss of every task and backbone with its largest subset, side by side.

    A thin line is a seed, or a fold of one; the thick one is the median over these, as far as all of them
    reached.
    """
    pairs = sorted({(cell.task, cell.backbone) for cell in histories})
    if not pairs:
        return words_only("No fine-tuning loss to show: no cell has been trained.")
    all_cells = cells(config)
    figure, axes = panels(2 * len(pairs), min(PANEL_HEIGHT, max(PAGE_HEIGHT / len(pairs), LEAST_HEIGHT)))
    for (pair, column), axis in zip(product(pairs, SIDES), axes, strict=True):
        largest = max(cell.subset for cell in histories if (cell.task, cell.backbone) == pair)
        shown = {
            cell: rows
            for cell, rows in histories.items()
            if (cell.task, cell.backbone, cell.subset) == (*pair, largest)
        }
        _draw_groups(axis, config, shown, column)
        cohort = cohort_label(config, config.tasks[pair[0]].train)
        wanted = sum((c.task, c.backbone, c.subset) == (*pair, largest) for c in all_cells)
        title = f"{pair[0]} on {cohort}, {backbone_label(config, pair[1])}: {SIDES[column]}"
        axis.set_title(f"{title}\n{largest.text}, {len(shown)}/{wanted} cells", loc="left")
        axis.set_ylabel(kind_of(config.tasks[pair[0]]).loss_label)
        _steps(axis)
    single = "seeds and folds" if config.splits.folds else "seeds"
    shared_legend(figure, axes, f"thin: single {single}; thick: their median")
    return figure


def _draw_groups(axis: Axes, config: Config, shown: dict[Cell, list[Row]], column: str) -> None:
    groups: dict[Group, list[tuple[list[int], list[float]]]] = {}
    for cell, rows in shown.items():
        groups.setdefault(cell.group, []).append(_curve(rows, column))
    looks, main = Looks(config), main_backbones(config)
    for contender in sorted(
        (one for one in contenders(config) if one.group in groups), key=lambda one: one.place[1:]
    ):
        curves, style = groups[contender.group], looks.of(contender)
        for steps, losses in curves:
            axis.plot(steps, losses, color=style.colour, alpha=0.35, linewidth=0.5)
        median = [
            statistics.median(values) for values in zip(*(losses for _, losses in curves), strict=False)
        ]
        steps = curves[0][0][: len(median)]
        label = contender.name if contender.backbone in main else contender.label
        axis.plot(steps, median, **style.line, label=label)


def _curve(rows: Sequence[Row], column: str) -> tuple[list[int], list[float]]:
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]


def _steps(axis: Axes) -> None:
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
