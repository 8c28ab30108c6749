"""From the scan to the template grid in one interpolation, and from there to the cube that models see."""

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from neuropeft.inputs.arrays import resize, zscore
from neuropeft.inputs.base import Folders, Row, Step
from neuropeft.inputs.io import ScanError, read_own, save_image
from neuropeft.inputs.t1w.measures import template_numbers
from neuropeft.inputs.t1w.ninedof import NineDof, load_itk
from neuropeft.inputs.t1w.scan import own_mask
from neuropeft.inputs.t1w.template import AFFINE, mni152_brain


def to_template(
    image: nib.Nifti1Image, mask: np.ndarray, transform: NineDof, template: nib.Nifti1Image
) -> np.ndarray:
    """Resample a scan's brain onto the template grid by one trilinear interpolation.

    Scan and mask are interpolated together as (scan · mask) / mask: at the edge only brain voxels count, so
    neither the skull leaks in nor does the background darken the rim. Voxels whose interpolated mask is
    below one half are exactly 0.

    Args:
        image: bias-corrected scan.
        mask: [X, Y, Z] its brain.
        transform: from the template to the scan.
        template: gives the grid.

    Returns:
        float32 of the template's shape, in the scan's units.

    Raises:
        ScanError: the transform places no brain on the grid.
    """
    to_voxel = np.linalg.inv(image.affine) @ transform.matrix @ template.affine
    grid = np.indices(template.shape, np.float32).reshape(3, -1)
    voxels = to_voxel[:3, :3].astype(np.float32) @ grid + to_voxel[:3, 3:].astype(np.float32)
    brain = mask.astype(np.float32)
    weight = map_coordinates(brain, voxels, order=1, prefilter=False)
    value = map_coordinates(np.asarray(image.dataobj) * brain, voxels, order=1, prefilter=False)
    inside = weight >= 0.5
    if not inside.any():
        raise ScanError("no part of the brain lies on the template grid after registration")
    return np.where(inside, value / np.maximum(weight, 0.5), 0).reshape(template.shape).astype(np.float32)


def to_model_grid(volume: np.ndarray, size: int = 80) -> np.ndarray:
    """Resize a volume to a cube and z-score it.

    Resizing and z-scoring commute; scoring last makes mean 0 and deviation 1 exact for what models see.

    Args:
        volume: [X, Y, Z] on the template grid.
        size: edge of the cube in voxels.

    Returns:
        float32 [size, size, size].
    """
    return zscore(resize(volume, (size, size, size)))


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    image, transform = read_own(folders.scan(row)), load_itk(row["transform"])
    volume = to_template(image, own_mask(row), transform, mni152_brain())
    path = folders.derivative(row, "space-MNI152_desc-preproc_T1w.nii.gz")
    save_image(path, volume, AFFINE, space="mni")
    return {"preproc": str(path), **template_numbers(volume)}


STEP = Step("resample", _work, ("preproc", "template_correlation", "template_overlap"))
