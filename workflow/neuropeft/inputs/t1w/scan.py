"""T1-weighted heads and their brain masks: as they come, and as earlier steps wrote them."""

from pathlib import Path

import nibabel as nib
import numpy as np

from neuropeft.inputs.base import Row
from neuropeft.inputs.io import ScanError, by, read_image, read_own, read_scan, voxel_sizes

EXTENT_MM = (50.0, 800.0)  # a field of view outside cannot hold a head, or its voxel sizes are not in mm
RINGING = 0.2  # of bright tissue above the background: how far splines undershoot beside an edge ...
MOST_DEEP = 0.001  # ... in all but this share of the voxels
SAME_GRID_MM = 0.01  # a mask may miss its scan's grid by this much rounding in the header


def load_scan(path: str | Path) -> nib.Nifti1Image:
    """Read a T1-weighted scan and check that it is one.

    Args:
        path: a .nii, .nii.gz or .mgz file. A 4D file with a single volume counts as 3D.

    Returns:
        The scan as `read_scan` returns it, at least 0 everywhere.

    Raises:
        ScanError: the file is missing, damaged or not one 3D head; the message says which.
        UserError: it may not be read, or its disk or network failed.
    """
    image = read_scan(path)
    extent = voxel_sizes(image.affine) * image.shape
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        raise ScanError(
            f"{path} covers {by(extent)} mm; a head needs {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm per axis"
        )
    return nib.Nifti1Image(_from_zero(np.asarray(image.dataobj)), image.affine)


def load_mask(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """Read a brain mask that was drawn on a scan.

    Args:
        path: the mask file; voxels above 0.5 are brain.
        image: the scan as `load_scan` returned it.

    Returns:
        uint8 [X, Y, Z] in the order of `image`.

    Raises:
        ScanError: the file cannot be read, is empty or is not on the scan's own grid.
        UserError: its disk or network failed.
    """
    mask = read_image(path)
    if mask.shape != image.shape:
        raise ScanError(f"the mask {path} has shape {mask.shape}, its scan {image.shape} (in RAS order)")
    corners = np.array([[0, 0, 0, 1], [*mask.shape, 1]], float).T
    apart = np.abs((mask.affine - image.affine) @ corners).max()
    if apart > SAME_GRID_MM:
        raise ScanError(
            f"the mask {path} is not on its scan's grid: their positions differ by {apart:.3g} mm"
        )
    inside = np.asarray(mask.dataobj) > 0.5
    if not inside.any():
        raise ScanError(f"the mask {path} is empty")
    return inside.astype(np.uint8)


def own_mask(row: Row) -> np.ndarray:
    """Return the brain, bool [X, Y, Z], that skull-stripping has found in a scan."""
    return np.asarray(read_own(row["brain_mask"]).dataobj) > 0


def _from_zero(data: np.ndarray) -> np.ndarray:
    """Return a scan [X, Y, Z] whose background is 0 if it is one value, and that goes nowhere below 0.

    Scans standardised inside the brain, and integers with an offset, hold tissue below 0; scans that were
    resampled by splines ring about their background. The steps to come take what is not positive for
    background.
    """
    low, faces = float(data.min()), on_faces(data)
    background, share = commonest(faces)
    is_one_value = share > 0.5
    if low >= 0:
        return np.where(data == background, 0, data) if is_one_value else data
    if not is_one_value:
        background = float(np.median(faces))
    deep = data < background - RINGING * (bright(data) - background)
    if deep.mean() <= MOST_DEEP:
        return np.maximum(data - background, 0)
    return np.where(data == background, 0, data - low) if is_one_value else data - low


def on_faces(data: np.ndarray) -> np.ndarray:
    """Return the values on the faces of a volume [X, Y, Z], where hardly anything but background is."""
    return np.concatenate([data[[0, -1]].ravel(), data[:, [0, -1]].ravel(), data[:, :, [0, -1]].ravel()])


def commonest(faces: np.ndarray) -> tuple[float, float]:
    """Return the commonest of some values and its share: of a stripped scan's faces, the background."""
    values, counts = np.unique(faces, return_counts=True)
    return float(values[counts.argmax()]), counts.max() / faces.size


def bright(data: np.ndarray) -> float:
    """Return the intensity of bright tissue, of which single voxels and vessels are brighter."""
    return float(np.quantile(data, 0.995))
