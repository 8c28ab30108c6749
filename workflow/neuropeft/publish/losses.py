"""Loss curves of pretraining and fine-tuning, as figures and as data."""

import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neuropeft.config import Config, ViT
from neuropeft.evaluate.costs import cell_folder
from neuropeft.files import read_tsv
from neuropeft.grid import Cell, Group, cells, encoder_folder, encoders
from neuropeft.publish.labels import backbone_label, cohort_label, group_label, start_label
from neuropeft.publish.style import group_look, look, panels, shared_legend, words_only

PANEL_HEIGHT = 2.3  # inches
LEAST_HEIGHT = 1.6
PAGE_HEIGHT = 9.0
PRETRAINING_COLUMNS = ("pretraining", "backbone", "fold", "epoch", "lr", "train_loss", "val_loss", "seconds")
FINETUNING_COLUMNS = (
    "task",
    "backbone",
    "pretraining",
    "method",
    "fraction",
    "seed",
    "fold",
    "epoch",
    "lr",
    "train_loss",
    "val_loss",
    "val_metric",
    "seconds",
)
SIDES = {"train_loss": "training", "val_loss": "validation"}

Row = dict[str, str]
Encoder = tuple[str, str, int]  # pretraining, backbone, fold


def pretraining_histories(config: Config, results: Path) -> dict[Encoder, list[Row]]:
    """Return the epochs of every (pretraining, backbone, fold) that has run."""
    paths = {encoder: results / encoder_folder(*encoder) / "history.csv" for encoder in encoders(config)}
    return {encoder: read_tsv(path) for encoder, path in paths.items() if path.is_file()}


def finetuning_histories(config: Config, results: Path) -> dict[Cell, list[Row]]:
    """Return the epochs of every cell that has run."""
    paths = {cell: cell_folder(results, cell) / "history.csv" for cell in cells(config)}
    return {cell: read_tsv(path) for cell, path in paths.items() if path.is_file()}


def draw_pretraining_losses(config: Config, histories: dict[Encoder, list[Row]]) -> Figure:
    """Draw training and validation loss of the masked autoencoders, a panel for each."""
    if not histories:
        return words_only("No pretraining loss to show: nothing has been pretrained.")
    figure, axes = panels(len(histories), PANEL_HEIGHT)
    for axis, ((pretraining, backbone, fold), rows) in zip(axes, histories.items(), strict=True):
        for index, (column, label) in enumerate(SIDES.items()):
            style = look(index)
            axis.plot(*_curve(rows, column), color=style.colour, linestyle=style.dashes, label=label)
        cohort = cohort_label(config, config.autoencoders[pretraining].cohort)
        title = f"{backbone_label(backbone)}, {pretraining} on {cohort}"
        axis.set_title(f"{title}, fold {fold}" if fold else title, loc="left")
        axis.set_ylabel("loss on hidden patches (MSE)")
        _epochs(axis)
    shared_legend(figure, axes)
    return figure


def draw_finetuning_losses(config: Config, histories: dict[Cell, list[Row]]) -> Figure:
    """Draw training and validation loss of every task and backbone at its largest fraction, side by side.

    A thin line is a seed, or a fold of one; the thick one is the median over these, for the epochs that all
    of them reached.
    """
    pairs = sorted({(cell.task, cell.backbone) for cell in histories})
    if not pairs:
        return words_only("No fine-tuning loss to show: no cell has been trained.")
    figure, axes = panels(2 * len(pairs), min(PANEL_HEIGHT, max(PAGE_HEIGHT / len(pairs), LEAST_HEIGHT)))
    for (pair, column), axis in zip(product(pairs, SIDES), axes, strict=True):
        largest = max(cell.fraction for cell in histories if (cell.task, cell.backbone) == pair)
        shown = {
            cell: rows
            for cell, rows in histories.items()
            if (cell.task, cell.backbone, cell.fraction) == (*pair, largest)
        }
        _draw_groups(axis, config, shown, column)
        cohort = cohort_label(config, config.tasks[pair[0]].train)
        wanted = sum((c.task, c.backbone, c.fraction) == (*pair, largest) for c in cells(config))
        title = f"{pair[0]} on {cohort}, {backbone_label(pair[1])}: {SIDES[column]}"
        axis.set_title(
            f"{title}\n{largest} % of the training subjects, {len(shown)}/{wanted} cells", loc="left"
        )
        kind = config.tasks[pair[0]].kind
        axis.set_ylabel("loss (L1, standardised)" if kind == "regression" else "loss (cross-entropy)")
        _epochs(axis)
    single = "seeds and folds" if config.splits.folds else "seeds"
    shared_legend(figure, axes, f"thin: single {single}; thick: their median")
    return figure


def _draw_groups(axis: Axes, config: Config, shown: dict[Cell, list[Row]], column: str) -> None:
    groups: dict[Group, list[list[float]]] = {}
    for cell, rows in shown.items():
        groups.setdefault(cell.group, []).append(_curve(rows, column)[1])
    methods = list(config.methods)
    for group, curves in sorted(groups.items(), key=lambda pair: methods.index(pair[0].method)):
        style = group_look(config, group)
        for losses in curves:
            axis.plot(range(1, len(losses) + 1), losses, color=style.colour, alpha=0.35, linewidth=0.5)
        median = [statistics.median(values) for values in zip(*curves, strict=False)]
        is_vit = isinstance(config.backbones[group.backbone], ViT)
        label = start_label(config, group) if is_vit else group_label(config, group)
        axis.plot(range(1, len(median) + 1), median, color=style.colour, linestyle=style.dashes, label=label)


def _curve(rows: Sequence[Row], column: str) -> tuple[list[int], list[float]]:
    return [int(row["epoch"]) for row in rows], [float(row[column]) for row in rows]


def _epochs(axis: Axes) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
