"""Pictures of brains on the template grid: masked, so without a face."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuropeft.inputs.t1w.template import mni152_brain, mni152_mask

# Slices through ventricles, basal ganglia, temporal lobes and the midline.
SLICES = ((2, 36), (2, 50), (1, 50), (1, 66), (0, 47), (0, 62))
TISSUE_LEVEL = 0.62  # template intensity between grey and white matter, fractions of its brightest


def draw_montage(volumes: Mapping[str, np.ndarray]) -> Any:
    """Draw brains slice by slice with the template's outline and its border of grey and white matter.

    Args:
        volumes: {caption: [91, 109, 91] brain on the template grid}.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    template, inside = np.asarray(mni152_brain().dataobj), mni152_mask()
    rows, columns = len(volumes), len(SLICES)
    figure = Figure(figsize=(1.75 * columns, 2.0 * rows), facecolor="black")
    axes = figure.subplots(rows, columns, squeeze=False)
    for line, (caption, volume) in zip(axes, volumes.items(), strict=True):
        top = np.quantile(volume[volume != 0], 0.99)
        for axis, (direction, index) in zip(line, SLICES, strict=True):
            axis.imshow(_slice(volume, direction, index), cmap="gray", vmin=0, vmax=top, origin="lower")
            outline = _slice(inside.astype(np.float32), direction, index)
            axis.contour(outline, [0.5], colors="#ffcc33", linewidths=0.9)
            axis.contour(_slice(template, direction, index), [TISSUE_LEVEL], colors="#33ccff", linewidths=0.5)
            axis.axis("off")
            if direction != 0:
                axis.text(0.02, 0.5, "L", color="white", fontsize=7, transform=axis.transAxes)
        line[0].set_title(caption, color="white", fontsize=9, loc="left")
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.22 / (2.0 * rows), wspace=0.02, hspace=0.16)
    return figure


def _slice(volume: np.ndarray, direction: int, index: int) -> np.ndarray:
    """Return a slice for imshow with origin below: superior or anterior is up, left is left."""
    return np.take(volume, index, axis=direction).T
