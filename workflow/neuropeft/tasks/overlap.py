"""How well a predicted region of a scan agrees with the true one, and what holds where one is empty.

The rules are those of BraTS (Menze et al. 2015, and its later editions): of two empty regions everything is
perfect. Where only one is empty, Dice and surface Dice are 0, and the distance is the diagonal of the image.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class Overlap(NamedTuple):
    """Dice, the 95th percentile of the Hausdorff distance in mm, and normalised surface Dice of a region."""

    dice: float
    hd95: float
    nsd: float


def dice(predicted: "Tensor", truth: "Tensor") -> "Tensor":
    """Return the Dice coefficients [B, regions] of [B, regions, *S], true or false; 1 if both are empty."""
    shared, *sizes = [one.flatten(2).sum(2) for one in (predicted & truth, predicted, truth)]
    both = sizes[0] + sizes[1]
    return (2 * shared + (both == 0)) / both.clamp_min(1)


def overlap(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], voxel_mm: Sequence[float], tolerance_mm: float
) -> Overlap:
    """Compare two regions of a scan, [*S] each, on its own grid.

    Args:
        predicted: the region as it was predicted.
        truth: the region as it is.
        voxel_mm: edges of a voxel, one for each axis.
        tolerance_mm: how far apart surfaces count as the same (Nikolov et al. 2018).
    """
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if not predicted.any() or not truth.any():
        same = predicted.any() == truth.any()
        diagonal = float(np.linalg.norm(np.array(truth.shape) * np.asarray(voxel_mm)))
        return Overlap(1.0, 0.0, 1.0) if same else Overlap(0.0, diagonal, 0.0)
    one, other = (torch.from_numpy(region)[None, None].float() for region in (predicted, truth))
    spacing = [float(edge) for edge in voxel_mm]
    distance = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=spacing)
    surface = compute_surface_dice(one, other, [tolerance_mm], include_background=True, spacing=spacing)
    shared = float((predicted & truth).sum())
    return Overlap(2 * shared / float(predicted.sum() + truth.sum()), float(distance), float(surface))
