"""Predicted regions beside the true ones: of the test subjects the best, the median and the worst."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from neuropeft import layout
from neuropeft.cohorts.splits import TEST
from neuropeft.config import Config, SegmentationTask
from neuropeft.contenders import Contender
from neuropeft.evaluate.scores import Score, at_home
from neuropeft.files import read_tsv
from neuropeft.grid import names_of
from neuropeft.inputs import input_kind
from neuropeft.inputs.base import OUTLINES
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import DOUBLE_COLUMN, FONT_SIZE, new_figure, without_frame, words_only
from neuropeft.split_names import split_name
from neuropeft.store import open_store

# Axis that is cut, of volumes in RAS order.
PLANES: Mapping[str, int | None] = {"sagittal": 0, "coronal": 1, "axial": 2}
SHOWN = ("best", "median", "worst")
TITLE_HEIGHT = 0.7  # inches
Row = Mapping[str, str]


def draw_segmentations(config: Config, results: Path, scores: Sequence[Score], name: str) -> Figure:
    """Draw a row for each of three test subjects, and a column for each plane through the true regions.

    They are those of the method with the best mean Dice on the largest subset, and of its first seed and
    fold.

    Raises:
        UserError: a file of the store or of predictions cannot be read.
    """
    task = config.tasks[name]
    assert isinstance(task, SegmentationTask), "see grid.segmented"
    best = _best(config, scores, name)
    if best is None:
        return words_only(f"No regions to show: nothing has been predicted of {name}.")
    predictions = layout.PREDICTIONS.at(results, **names_of(best.group), cohort=task.train)
    rows = _chosen(read_tsv(predictions), best, task)
    planes = PLANES if config.cohorts[task.train].input.dims == 3 else {"": None}
    figure = new_figure(DOUBLE_COLUMN / 3 * len(planes), DOUBLE_COLUMN / 3 * len(rows) + TITLE_HEIGHT)
    axes = figure.subplots(len(rows), len(planes), squeeze=False)
    store = open_store(layout.STORE.at(results, cohort=task.train))
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        at = store.index_of(row["scan_id"])
        split = split_name(int(row["seed"]), int(row["fold"]))
        found = layout.predicted_files(predictions, row["subset"], split)
        volume, truth = store.volumes[at, 0].astype(np.float32), store.labels[at]
        kind = input_kind(store.rows[at]["input"])
        image = found / (layout.LABEL_MAP.format(scan=row["scan_id"]) + kind.label_suffix)
        predicted = kind.label_map(store.rows[at] | {"dseg": str(image)}, len(truth))
        low, high = np.percentile(volume, [1, 99.5])
        for axis, (plane, cut) in zip(line, planes.items(), strict=True):
            slices = [volume, truth, predicted]
            if cut is not None:
                place = int((truth > 0).sum(tuple({0, 1, 2} - {cut})).argmax())
                slices = [np.rot90(np.take(one, place, axis=cut)) for one in slices]
            _show(axis, task, slices, (low, high))
            if axis in axes[0]:
                axis.set_title(plane)
        line[0].set_ylabel(title)
    figure.suptitle(
        f"{name} on {cohort_label(config, task.train)}: {best.label}, {best.subset.label}", fontsize=FONT_SIZE
    )
    figure.legend(handles=_legend(task), loc="outside lower center", ncols=len(task.values) + 2)
    return figure


def _best(config: Config, scores: Sequence[Score], name: str) -> Contender | None:
    """Return the method with the best mean of the primary metric, among those on the largest subset."""
    methods = [score for score in at_home(config, scores, name) if score.contender.is_method]
    of_task = [score for score in methods if math.isfinite(score.mean)]
    ranked = sorted(of_task, key=lambda score: (score.contender.subset, score.mean))
    return ranked[-1].contender if ranked else None


def _chosen(rows: Sequence[Row], best: Contender, task: SegmentationTask) -> dict[str, Row]:
    """Return the rows of the subjects that are shown, by what is written beside them."""
    own = [row for row in rows if row["split"] == TEST and row["subset"] == str(best.subset)]
    first = min((int(row["seed"]), int(row["fold"])) for row in own)
    own = [row for row in own if (int(row["seed"]), int(row["fold"])) == first]

    def dice(row: Row) -> float:
        return float(np.mean([float(row[f"dice_{region}"]) for region in task.values]))

    ranked = sorted(own, key=lambda row: (-dice(row), row["scan_id"]))
    places = (0, len(ranked) // 2, len(ranked) - 1)
    return {
        f"{what}: {ranked[place]['scan_id']}\nDice {dice(ranked[place]):.2f}": ranked[place]
        for what, place in zip(SHOWN, places, strict=True)
    }


def _show(
    axis: Axes,
    task: SegmentationTask,
    slices: Sequence[NDArray[Any]],
    limits: tuple[float, float],
) -> None:
    """Draw a slice of a scan, with the regions of its true labels outlined and predicted ones dashed."""
    image, truth, predicted = slices
    axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    for place, values in enumerate(task.values.values()):
        for labels, dashes in ((truth, "solid"), (predicted, "dashed")):
            inside = np.isin(labels, values)
            if inside.any():
                colour = OUTLINES[place % len(OUTLINES)]
                axis.contour(inside, [0.5], colors=colour, linewidths=1.0, linestyles=dashes)
    without_frame(axis)


def _legend(task: SegmentationTask) -> list[Line2D]:
    regions = [
        Line2D([], [], color=OUTLINES[place % len(OUTLINES)], label=region)
        for place, region in enumerate(task.values)
    ]
    lines = [Line2D([], [], color="black", linestyle=dashes) for dashes in ("solid", "dashed")]
    for line, label in zip(lines, ("true", "predicted"), strict=True):
        line.set_label(label)
    return [*regions, *lines]
