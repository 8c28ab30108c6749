"""Reconstructions of the masked autoencoder beside their inputs and masks."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neuropeft.config import Config, MaskedAutoencoder
from neuropeft.contenders import backbone_label
from neuropeft.errors import UserError
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import DOUBLE_COLUMN, FONT_SIZE, new_figure, without_frame, words_only

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis that is cut, of volumes in RAS order
STAGES = ("input", "masked", "rebuilt")
HIDDEN_COLOUR = "#56B4E9"
TITLE_HEIGHT = 0.9  # inches


def draw_reconstructions(config: Config, path: Path, pretraining: str, backbone: str) -> Figure:
    """Draw central slices: a row per scan, three planes, each as input, masked input and reconstruction.

    The npz `path` has `input`, `mask` (True where hidden) and `reconstruction`, each [scans, S, S, S].

    Raises:
        UserError: the file lacks an array, or shapes differ.
    """
    if not path.is_file():
        return words_only(f"No reconstructions to show: {pretraining} has not trained {backbone}.")
    volumes, hidden, predicted = _load(path)
    scans = len(volumes)
    figure = new_figure(DOUBLE_COLUMN, DOUBLE_COLUMN / 9 * scans + TITLE_HEIGHT)
    axes = figure.subplots(scans, 9, squeeze=False)
    for row in range(scans):
        low, high = np.percentile(volumes[row], [1, 99.5])
        for plane_index, (plane, axis_cut) in enumerate(PLANES.items()):
            image, mask, guess = (_slice(v[row], axis_cut) for v in (volumes, hidden, predicted))
            pictures = (image, np.ma.masked_array(image, mask > 0), np.where(mask > 0, guess, image))
            for stage_index, picture in enumerate(pictures):
                axis = axes[row, 3 * plane_index + stage_index]
                _show(axis, picture, low, high)
                if row == 0:
                    head = f"{plane}\n" if stage_index == 0 else "\n"
                    axis.set_title(head + STAGES[stage_index])
        axes[row, 0].set_ylabel(f"scan {row + 1}")
    spec = config.trained[pretraining]
    assert isinstance(spec, MaskedAutoencoder), "see grid.autoencoded"
    title = (
        f"{backbone_label(config, backbone)}, {pretraining} on {cohort_label(config, spec.cohort)}: "
        f"reconstructions by the masked autoencoder\n{spec.mask_ratio * 100:g} % of the patches are hidden "
        "(blue) and rebuilt from the visible ones, which are shown as given"
    )
    if spec.normalize_targets:
        title += "\n(rebuilt patches have their pattern from the network, mean and contrast from the input)"
    figure.suptitle(title, fontsize=FONT_SIZE)
    return figure


def _load(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    with np.load(path) as arrays:
        try:
            volumes, hidden, predicted = (arrays[key] for key in ("input", "mask", "reconstruction"))
        except KeyError as error:
            raise UserError(f"{path}: {error}; delete the file and run the workflow again") from error
    if not volumes.shape == hidden.shape == predicted.shape or volumes.ndim != 4:
        raise UserError(f"{path}: arrays differ in shape; delete the file and run the workflow again")
    return volumes.astype(np.float32), hidden, predicted.astype(np.float32)


def _slice(volume: NDArray[Any], axis_cut: int) -> NDArray[Any]:
    """Return the central slice [S, S], turned so that superior or anterior is up."""
    return np.rot90(np.take(volume, volume.shape[axis_cut] // 2, axis=axis_cut))


def _show(axis: Axes, picture: NDArray[Any], low: float, high: float) -> None:
    axis.set_facecolor(HIDDEN_COLOUR)  # shows where a masked array has no value
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    without_frame(axis)
