"""Figures of where in the brain methods look, beside the same network with random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.contenders import backbone_label
from neuropeft.errors import UserError
from neuropeft.grid import names_of
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.inputs.t1w.template import AFFINE, SHAPE, mni152_brain
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import DOUBLE_COLUMN, FONT_SIZE, new_figure, without_frame, words_only
from neuropeft.variant_names import LEARNT, RANDOM
from neuropeft.variants import salient

# Axis that is cut, of volumes in RAS order, and where, as a share of its length.
SLICES = (
    *(("axial", 2, 0.36), ("axial", 2, 0.5), ("axial", 2, 0.64)),
    *(("coronal", 1, 0.5), ("sagittal", 0, 0.56)),
)
ROW_HEIGHT, TITLE_HEIGHT = 1.15, 1.0  # inches
SMOOTH_MM = 8  # full width at half maximum, as usual of groups of brains
COLOURS = "viridis"  # alike to the colour-blind, and in grey
FAINT, BRIGHT = 50, 99.5  # percentiles inside the brain, of all rows: below the first nothing is drawn
Map = NDArray[Any]


def draw_saliency(config: Config, results: Path, task: str) -> Figure:
    """Draw a row of slices of the template's brain for each method, and each network with random weights.

    All rows have the same scale, 1 on average over the brain. Beside a method stands the rank correlation of
    its map with that of its network with random weights, over the brain's voxels, and how much of its
    gradient lies outside the brain, where nothing is drawn.

    Raises:
        UserError: a map cannot be read.
    """
    rows: list[tuple[str, Map]] = []
    controls: dict[str, tuple[Map, str]] = {}
    scans: set[int] = set()
    for one in salient(config):
        if one.task != task:
            continue
        names = names_of(one.group[:4]) | {"cohort": config.tasks[task].train}
        learnt, random, number = _read(layout.SALIENCY.at(results, **names))
        brain, inside = _template(len(learnt))
        elsewhere, of_random = _outside(learnt, inside), _outside(random, inside)
        learnt, random = _smooth(learnt, inside), _smooth(random, inside)
        controls.setdefault(one.backbone, (random, of_random))
        alike = float(spearmanr(learnt[inside], random[inside]).statistic)
        rows.append((f"{one.label}\nlike random weights: {round(alike, 2) + 0:.2f}\n{elsewhere}", learnt))
        scans.add(number)
    if not rows:
        return words_only(f"No saliency to show: no method of {task} was asked.")
    for name, (random, elsewhere) in controls.items():
        rows.append((f"{backbone_label(config, name)}\nwith random weights\n{elsewhere}", random))
    values = np.concatenate([map[inside] for _, map in rows])
    low, high = np.percentile(values, [FAINT, BRIGHT])
    figure = new_figure(DOUBLE_COLUMN, ROW_HEIGHT * len(rows) + TITLE_HEIGHT)
    axes = figure.subplots(len(rows), len(SLICES), squeeze=False)
    for line, (label, map) in zip(axes, rows, strict=True):
        for axis, (_, cut, share) in zip(line, SLICES, strict=True):
            drawn = _draw(axis, brain, inside, map, (low, high), cut, share)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=4)
    for axis, (name, _, _) in zip(axes[0], SLICES, strict=True):
        axis.set_title(name)
    bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.4, aspect=40)
    bar.set_label("magnitude of the gradient, 1: mean of the brain")
    cohort = cohort_label(config, config.tasks[task].train)
    asked = f"{min(scans):,}" if len(scans) == 1 else f"{min(scans):,} to {max(scans):,}"
    figure.suptitle(
        f"{task}: where in the brain test scans of {cohort} change the prediction most. SmoothGrad, mean "
        f"over {asked} of each method,\nsmoothed by {SMOOTH_MM} mm, on the template. What random weights "
        "show, too, was not learnt.",
        fontsize=FONT_SIZE,
    )
    return figure


def _read(path: Path) -> tuple[Map, Map, int]:
    try:
        with np.load(path) as arrays:
            return arrays[LEARNT], arrays[RANDOM], int(arrays["scans"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: {error}; delete it and run the workflow again") from error


def _template(size: int) -> tuple[Map, Map]:
    """Return the template [S, S, S] from 0 to 1, and where it has brain."""
    volume = to_model_grid(np.asarray(mni152_brain().dataobj), size).astype(np.float32)
    volume -= volume.min()
    volume /= volume.max()
    return volume, volume > 0.05


def _outside(map: Map, inside: Map) -> str:
    """Return how much of a map lies outside the brain, as it is written."""
    return f"outside the brain: {map[~inside].sum() / max(map.sum(), 1e-30):.0%}"


def _smooth(map: Map, inside: Map) -> Map:
    """Return a map smoothed within the brain, to which nothing outside it contributes, 1 on average there."""
    sigma = SMOOTH_MM / np.sqrt(8 * np.log(2)) / _voxel_mm(len(map))
    weight = gaussian_filter(inside.astype(np.float32), sigma)
    smoothed: Map = gaussian_filter(np.where(inside, map, 0).astype(np.float32), sigma)
    found: Map = np.where(inside, smoothed / np.maximum(weight, 1e-6), 0)
    return found / max(float(found[inside].mean()), 1e-30)


def _voxel_mm(size: int) -> Map:
    """Return the edges of a voxel of the model's grid, [3]."""
    return np.array(SHAPE) * np.diag(AFFINE)[:3] / size


def _draw(
    axis: Axes, brain: Map, inside: Map, map: Map, limits: Sequence[float], cut: int, share: float
) -> Any:
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(inside))
    across, up = np.delete(_voxel_mm(len(brain)), cut)
    place = int(share * (box[cut].stop - box[cut].start))
    slices = (np.rot90(np.take(one[box], place, axis=cut)) for one in (brain, inside, map))
    grey, mask, colours = slices
    low, high = limits
    look: Any = {"interpolation": "nearest", "aspect": up / across}
    axis.imshow(np.ma.masked_array(grey, ~mask), cmap="gray", vmin=0, vmax=1.2, **look)
    shown = np.ma.masked_array(colours, ~mask | (colours < low))
    drawn = axis.imshow(shown, cmap=COLOURS, vmin=low, vmax=high, alpha=0.75, **look)
    without_frame(axis)
    return drawn
