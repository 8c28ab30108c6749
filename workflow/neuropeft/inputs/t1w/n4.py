"""N4 bias correction (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908), estimated on a coarse grid.

N4's field is a B-spline with a handful of control points: it is smooth over centimetres. Its cost is that of
fitting all voxels again and again, so here it fits one voxel every `COARSE_MM`, and its first three levels,
whose field the last one refines, get fewer iterations. Voxels are picked, not averaged: averages blend
tissues and move the field by more (benchmarks/n4.py). The field is then applied at full resolution. It is
estimated on the scan's own axes, so their directions do not matter.
"""

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from neuropeft.inputs.base import Folders, Row, Step
from neuropeft.inputs.io import ScanError, save_image, voxel_hash, voxel_sizes
from neuropeft.inputs.t1w.scan import load_scan

COARSE_MM = 8.0
ITERATIONS = (20, 20, 20, 50)  # antspyx: (50, 50, 50, 50)
# Voxels up to this share of the brightest have no say: the field is estimated on logarithms, whose histogram
# a background of 1e-20, as interpolation leaves it, would stretch until N4 finds nothing.
DARK = 0.01
SMALLEST_COARSE_AXIS = 8  # voxels: fewer do not carry the spline's finest level


def correct_bias(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Divide a scan by its smooth multiplicative intensity field.

    Args:
        image: float32 scan in any orientation, whole head or brain.

    Returns:
        The corrected scan, float32, on the same grid.

    Raises:
        ScanError: too few voxels are positive, or N4 found no field.
    """
    data = np.asarray(image.dataobj)
    field = bias_field(data, voxel_sizes(image.affine))
    # A background at or below zero stays one value, by which a stripped scan is known.
    return nib.Nifti1Image(np.where(data > 0, data / field, data), image.affine)


def bias_field(data: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """Estimate the field of a scan.

    Args:
        data: float32 [X, Y, Z].
        voxel_mm: [3] edge lengths of a voxel.

    Returns:
        float32 [X, Y, Z], positive; the same up to a factor as N4's on the full grid.

    Raises:
        ScanError: as `correct_bias`.
    """
    import ants

    steps = [_step(length, size) for length, size in zip(data.shape, voxel_mm, strict=True)]
    starts = [_start(length, step) for length, step in zip(data.shape, steps, strict=True)]
    coarse = np.ascontiguousarray(data[tuple(map(slice, starts, data.shape, steps))])
    top = float(np.quantile(coarse, 0.99))
    lit = coarse > DARK * top
    if top <= 0 or np.count_nonzero(lit) < SMALLEST_COARSE_AXIS**3:
        raise ScanError("N4 found almost no voxel above zero")
    spacing = [float(step * size) for step, size in zip(steps, voxel_mm, strict=True)]
    field = ants.n4_bias_field_correction(
        ants.from_numpy(coarse, spacing=spacing),
        mask=ants.from_numpy(lit.astype(np.float32), spacing=spacing),
        shrink_factor=1,
        convergence={"iters": list(ITERATIONS), "tol": 1e-7},
        return_bias_field=True,
    ).numpy()
    if not (np.isfinite(field).all() and field.min() > 0):
        raise ScanError("N4 found no field: its estimate is not positive everywhere")
    return _spread(np.log(field), data.shape, starts, steps)


def _step(length: int, size: float) -> int:
    return max(1, min(round(COARSE_MM / size), length // SMALLEST_COARSE_AXIS))


def _start(length: int, step: int) -> int:
    """Return the first voxel to pick: those picked lie centred, as ITK's own shrinking picks them."""
    span = step * (length // step - 1)
    return (length - span) // 2


def _spread(log_field: np.ndarray, shape: tuple[int, ...], starts: list[int], steps: list[int]) -> np.ndarray:
    """Interpolate the logarithm of the field linearly from the coarse grid to the full one."""
    for axis, (length, start, step) in enumerate(zip(shape, starts, steps, strict=True)):
        positions = (np.arange(length) - start) / step
        flat = np.moveaxis(log_field, axis, -1)
        low = np.clip(np.floor(positions).astype(int), 0, flat.shape[-1] - 2)
        weight = np.clip(positions - low, 0, 1).astype(np.float32)
        log_field = np.moveaxis(flat[..., low] * (1 - weight) + flat[..., low + 1] * weight, -1, axis)
    return np.exp(log_field)


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    scan = load_scan(row["path"])
    corrected = correct_bias(scan)
    save_image(folders.scan(row), np.asarray(corrected.dataobj), corrected.affine)
    return {"raw_sha1": voxel_hash(scan)}


STEP = Step("n4", _work)
