"""Registration of a brain to the template by exactly nine parameters, see `ninedof`.

The correlation of scan and template is maximised directly over the nine parameters, so there is no shear to
remove afterwards. Starting from matched centroids and volumes, a grid of rotations is tried at 8 mm; the
best few are refined by Levenberg-Marquardt on the normalised intensities (maximising the correlation of two
images is minimising the squared difference of their standardised versions), from 8 over 4 to 2 mm.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from neuropeft.inputs.base import Folders, Row, Step
from neuropeft.inputs.io import ScanError, read_own, voxel_sizes
from neuropeft.inputs.t1w.measures import transform_numbers
from neuropeft.inputs.t1w.ninedof import NineDof, rotation_matrix, save_itk, triple
from neuropeft.inputs.t1w.scan import own_mask
from neuropeft.inputs.t1w.template import mni152_brain

START_DEGREES = (-50.0, -25.0, 0.0, 25.0, 50.0)  # around every axis; basins of attraction overlap
LEVELS = ((8, 8, 12), (4, 3, 15), (2, 1, 15))  # (mm between samples, candidates kept, iterations)
RIM_MM = 10.0  # samples reach this far out of the template's brain: its outline informs the scales
BRIGHTEST = 0.995  # quantile at which intensities in the brain are clipped: vessels, leftovers of fat
SCALE_RANGE = (0.5, 2.0)
MEAN_STEP_MM = 0.005  # refinement stops below this mean displacement


@dataclass(frozen=True)
class _Level:
    """What one resolution compares.

    `points` [N, 3] are template positions in mm relative to `centre`, `target` [N] the standardised template
    there, `scan` the blurred scan, `to_voxel` [4, 4] maps scan mm to its voxels.
    """

    centre: np.ndarray
    points: np.ndarray
    target: np.ndarray
    scan: np.ndarray
    to_voxel: np.ndarray


def register(image: nib.Nifti1Image, mask: np.ndarray, template: nib.Nifti1Image) -> NineDof:
    """Find the transform from the template to a scan.

    The image is bias-corrected; `mask` [X, Y, Z] is its brain, and the template is 0 outside the brain.

    Returns:
        The transform with the best correlation.

    Raises:
        ScanError: the optimum is no plausible head (a scale beyond 0.5 to 2).
    """
    scan, affine = _brain(image, mask)
    inside = np.asarray(template.dataobj) > 0
    scan_centre, scan_ml = _centroid(scan > 0, affine)
    centre, template_ml = _centroid(inside, template.affine)
    size = np.log(np.cbrt(scan_ml / template_ml))
    candidates = [
        np.array([*angles, *scan_centre, size, size, size])
        for angles in itertools.product(np.radians(START_DEGREES), repeat=3)
    ]
    for spacing, keep, iterations in LEVELS:
        level = _level(scan, affine, template, inside, centre, spacing)
        candidates = sorted(candidates, key=lambda p: -_correlation(level, p))[:keep]
        candidates = [_refine(level, parameters, iterations) for parameters in candidates]
    best = max(candidates, key=lambda p: _correlation(level, p))
    return _as_transform(best, centre)


# -- preparing the images --------------------------------------------------------------------------


def _brain(image: nib.Nifti1Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the brain, clipped and cropped and averaged to voxels of about 2 mm, with its affine."""
    box = tuple(slice(max(0, i.min() - 2), i.max() + 3) for i in np.nonzero(mask))
    brain, inside = np.asarray(image.dataobj, np.float32)[box], mask[box] > 0
    values = brain[inside]
    top = np.quantile(values, BRIGHTEST)
    brain = np.where(inside, np.clip(brain, 0, top) / max(float(values.mean()), 1e-6), 0).astype(np.float32)
    affine = image.affine @ _offset([part.start for part in box])
    steps = np.maximum(1, np.floor(2.001 / voxel_sizes(affine))).astype(int)
    return _average(brain, affine, steps)


def _average(data: np.ndarray, affine: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of `steps` voxels."""
    data = np.pad(data, [(0, -length % step) for length, step in zip(data.shape, steps, strict=True)])
    for axis, step in enumerate(steps):
        shape = (*data.shape[:axis], data.shape[axis] // step, step, *data.shape[axis + 1 :])
        data = data.reshape(shape).mean(axis=axis + 1)
    return data, affine @ _offset((steps - 1) / 2) @ np.diag([*steps, 1])


def _offset(voxels: list[int] | np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


def _centroid(inside: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centre in mm and the volume in ml of a region."""
    centre = np.array([index.mean() for index in np.nonzero(inside)])
    volume = np.count_nonzero(inside) * voxel_sizes(affine).prod() / 1000
    return affine[:3, :3] @ centre + affine[:3, 3], float(volume)


def _level(
    scan: np.ndarray,
    affine: np.ndarray,
    template: nib.Nifti1Image,
    inside: np.ndarray,
    centre: np.ndarray,
    spacing: float,
) -> _Level:
    """Blur both images to `spacing` mm between samples and sample the template in and around its brain."""
    voxel = voxel_sizes(template.affine)
    step = tuple(slice(None, None, max(1, round(spacing / size))) for size in voxel)
    rim = binary_dilation(inside, iterations=max(1, round(RIM_MM / voxel.min())))[step]
    blurred = _blur(np.asarray(template.dataobj), voxel, spacing)[step]
    indices = np.stack(np.nonzero(rim), axis=1) * [part.step for part in step]  # [N, 3]
    points = indices @ template.affine[:3, :3].T + template.affine[:3, 3] - centre
    target, _ = _standardise(blurred[rim])
    scan = _blur(scan, voxel_sizes(affine), spacing)
    return _Level(centre, points.astype(np.float32), target, scan, np.linalg.inv(affine))


def _blur(data: np.ndarray, voxel: np.ndarray, spacing: float) -> np.ndarray:
    """Blur so that neighbouring samples, `spacing` mm apart, overlap; leave 2 mm data as they are."""
    sigma = np.sqrt(max(spacing**2 - 4.0, 0.0)) / 2
    return gaussian_filter(data, sigma / voxel) if sigma > 0 else data


def _standardise(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return values with mean 0 and norm 1, and the norm they had."""
    values = values - values.mean()
    norm = float(np.linalg.norm(values))
    return values / max(norm, 1e-12), norm


# -- the optimisation ------------------------------------------------------------------------------
# Parameters, [9]: three angles in radians, the scan position in mm of the template's centre, log scales.


def _linear(parameters: np.ndarray) -> np.ndarray:
    return rotation_matrix(parameters[:3]) * np.exp(parameters[6:])


def _voxels(level: _Level, parameters: np.ndarray) -> np.ndarray:
    """Return the scan's voxel coordinates [3, N] of the level's points."""
    to_voxel = level.to_voxel[:3, :3]
    linear = (to_voxel @ _linear(parameters)).astype(np.float32)
    shift = to_voxel @ parameters[3:6] + level.to_voxel[:3, 3]
    return linear @ level.points.T + shift.astype(np.float32)[:, None]


def _correlation(level: _Level, parameters: np.ndarray) -> float:
    values = map_coordinates(level.scan, _voxels(level, parameters), order=1, prefilter=False)
    return float(level.target @ _standardise(values)[0])


def _refine(level: _Level, parameters: np.ndarray, iterations: int) -> np.ndarray:
    """Climb to the nearest maximum of the correlation by Levenberg-Marquardt steps."""
    gradients = np.gradient(level.scan)
    reach = float(np.linalg.norm(level.points, axis=1).mean())  # mm; makes angles and scales comparable to mm
    unit = np.array([reach] * 3 + [1.0] * 3 + [reach] * 3)
    best, damping = _correlation(level, parameters), 1e-3
    for _ in range(iterations):
        jacobian, residual = _linearise(level, gradients, parameters)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ residual
        while damping < 1e3:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), slope)
            found = _correlation(level, parameters + step)
            if found > best:
                break
            damping *= 10
        else:
            return parameters
        parameters, best, damping = parameters + step, found, damping / 10
        if np.linalg.norm(step * unit) < MEAN_STEP_MM:
            break
    return parameters


def _linearise(
    level: _Level, gradients: list[np.ndarray], parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Jacobian [N, 9] of the standardised scan and what is missing to the template, [N]."""
    voxels = _voxels(level, parameters)
    values, norm = _standardise(map_coordinates(level.scan, voxels, order=1, prefilter=False))
    slopes = np.stack([map_coordinates(part, voxels, order=1, prefilter=False) for part in gradients], axis=1)
    slopes = slopes @ level.to_voxel[:3, :3].astype(np.float32)  # [N, 3] per mm of the scan
    # d value / d A_ij = slope_i point_j, for the linear part A; then A's derivative by angles and log scales.
    outer = (slopes[:, :, None] * level.points[:, None, :]).reshape(len(slopes), 9)
    jacobian = np.empty((len(slopes), 9), np.float32)
    jacobian[:, 3:6] = slopes
    for index in (0, 1, 2, 6, 7, 8):
        jacobian[:, index] = outer @ _linear_derivative(parameters, index).ravel().astype(np.float32)
    # Standardising takes the mean and what lies along the values themselves out of every column.
    jacobian -= jacobian.mean(axis=0)
    jacobian -= np.outer(values, values @ jacobian)
    return jacobian / max(norm, 1e-12), level.target - values


def _linear_derivative(parameters: np.ndarray, index: int) -> np.ndarray:
    step = np.zeros(9)
    step[index] = 1e-5
    return (_linear(parameters + step) - _linear(parameters - step)) / 2e-5


def _as_transform(parameters: np.ndarray, centre: np.ndarray) -> NineDof:
    scales = np.exp(parameters[6:])
    if scales.min() < SCALE_RANGE[0] or scales.max() > SCALE_RANGE[1]:
        shown = " x ".join(f"{scale:.2f}" for scale in scales)
        raise ScanError(f"registration failed: it made the head {shown} times the template")
    translation = parameters[3:6] - _linear(parameters) @ centre
    angles = (parameters[:3] + np.pi) % (2 * np.pi) - np.pi
    return NineDof(triple(angles), triple(translation), triple(scales))


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    transform = register(read_own(folders.scan(row)), own_mask(row), mni152_brain())
    path = folders.derivative(row, "from-T1w_to-MNI152_mode-image_xfm.txt")
    save_itk(transform, path)
    return {"transform": str(path), **transform_numbers(transform)}


STEP = Step("register", _work, ("transform", "scale_x", "scale_y", "scale_z", "rotation_deg", "shear"))
