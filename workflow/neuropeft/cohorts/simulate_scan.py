"""How one simulated scan is made: an individual's anatomy, then a scanner's image of it.

The template head is warped, aged and diseased in MNI space; the image is then sampled on a scanner's grid
in a random pose and given a bias field and Rician noise. Random numbers are drawn in a fixed order whatever
the age and the group, so two scans that differ in one of them show that difference and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuropeft.cohorts import phantom
from neuropeft.cohorts.phantom import SHAPE, VOXEL, Volume, structure, template_head

Affine = NDArray[np.float64]

# Size of a head relative to the template, which is larger than most heads (Lancaster et al. 2007).
MEAN_SIZE = {"F": 0.93, "M": 0.975}
SIZE_SD = 0.02  # per axis
WARP = ((36.0, 1.0), (18.0, 0.4))  # smooth random shape: distance of its control points and its SD, mm
TORQUE = 2.0  # mm by which the left occipital and right frontal poles stand out (Toga & Thompson 2003)
AGE_SD = 3.0  # years by which a brain looks older or younger than its age
LEFT_LOSS, RIGHT_LOSS = 1.2, 0.8  # AD takes more of the left medial temporal lobe (Thompson et al. 2003)
MAX_TURN = 12.0  # degrees of head rotation about each axis
MAX_SHIFT = 9.0  # mm from the centre of the field of view
MAX_TILT = 4.0  # degrees between the field of view and the scanner's axes
REACH = 6.5  # mm over which the planted deformations fade; below it, strong ones would fold the tissue
NOISE_FLOOR = 2.0  # SDs of noise below which scanners blank the air, as in most released scans
WHITE_LEVEL = 600.0  # stored intensity of white matter
SPLINE_SD = (151 / 315) ** 1.5  # of cubic B-splines of unit noise in 3D: the integral of their square


@dataclass(frozen=True)
class Scanner:
    """A site's protocol; intensities are relative to white matter."""

    grey: float  # intensity of grey matter
    fluid: float  # intensity of CSF
    # intensity of each material outside the brain, by the labels of `phantom`
    surroundings: tuple[float, ...]
    noise: float  # SD of each of the two channels of the Rician noise
    bias: float  # SD of the logarithm of the bias field
    axes: str  # direction of the three voxel axes
    voxel: tuple[float, float, float]  # voxel size along the voxel axes, mm
    shape: tuple[int, int, int]  # voxels along the voxel axes


SCANNERS = {
    "A": Scanner(
        grey=0.64,
        fluid=0.18,
        surroundings=(0.0, 0.16, 0.04, 0.36, 0.92, 0.45, 0.9),
        noise=0.022,
        bias=0.12,
        axes="LAS",
        voxel=(2.0, 2.0, 2.0),
        shape=(104, 120, 112),
    ),
    "B": Scanner(
        grey=0.70,
        fluid=0.27,
        surroundings=(0.0, 0.25, 0.07, 0.5, 1.25, 0.55, 0.92),
        noise=0.03,
        bias=0.2,
        axes="PSR",
        voxel=(1.9, 1.9, 2.2),
        shape=(124, 118, 90),
    ),
}


@dataclass(frozen=True)
class Anatomy:
    """What makes one head differ from the template."""

    scales: NDArray[np.float64]  # size relative to the template along x, y, z
    ventricles: float  # widening of the ventricles, mm
    thinning: float  # logarithm of the exponent that eats into tissue where it borders CSF
    hippocampus: float  # shrinking of the medial temporal structures, mm
    loss: float  # share of medial temporal tissue that is lost
    association: float  # what is added to `thinning` in the temporal and parietal lobes
    deep_grey: float  # PD-like change of the deep grey matter, 1 in a typical patient
    rng: np.random.Generator  # source of the smooth random fields, already advanced past the numbers above


@dataclass(frozen=True)
class SimulatedScan:
    """A simulated scan with its truth."""

    image: nib.Nifti1Image  # whole-head scan, int16
    mask: nib.Nifti1Image  # true brain mask on the same grid, uint8
    template_from_scan: Affine  # 4x4, scan world to MNI world, mm: the head's pose and size without its warp


def simulate(participant: Mapping[str, Any], effect: float) -> SimulatedScan:
    """Simulate the scan of one row of `simulate.participants`; see `simulate.simulate_scan`."""
    scanner = SCANNERS[participant["site"]]
    anatomy = _anatomy(participant, effect)
    warp = _warp(anatomy)  # before the tissue: both draw from the same generator
    head = _head_image(anatomy, scanner)
    rng = np.random.default_rng(participant["scan_seed"])
    affine, template_from_scan = _pose(rng, scanner, anatomy.scales)

    voxel_to_template = template_from_scan @ affine
    points = _template_voxels(voxel_to_template, scanner.shape, warp)
    image = ndimage.map_coordinates(head, points, order=1, output=np.float32)
    mask = ndimage.map_coordinates(template_head().brain, points, order=1, output=np.float32) > 0.5

    image *= np.exp(scanner.bias * spline_field(rng, scanner.shape, (4, 4, 4)))
    noise = scanner.noise * rng.standard_normal((2, *scanner.shape), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1])
    image[image < NOISE_FLOOR * scanner.noise] = 0
    gain = WHITE_LEVEL * rng.uniform(0.85, 1.15)
    return SimulatedScan(
        image=nib.Nifti1Image(np.rint(image * gain).astype(np.int16), affine),
        mask=nib.Nifti1Image(mask.astype(np.uint8), affine),
        template_from_scan=template_from_scan,
    )


def _anatomy(participant: Mapping[str, Any], effect: float) -> Anatomy:
    """Draw an individual's anatomy and add what age and disease do to it."""
    rng = np.random.default_rng(participant["anatomy_seed"])
    size, axes = rng.standard_normal(), rng.standard_normal(3)
    years, ventricles, thinning, hippocampus = rng.standard_normal(4)
    severity = effect * np.exp(0.3 * rng.standard_normal())
    alzheimer = severity * (participant["group"] == "AD")
    parkinson = severity * (participant["group"] == "PD")
    # Atrophy speeds up with age; 0 at 20 years, 1 at 90.
    aged = max((participant["age"] + AGE_SD * years - 20) / 70, 0) ** 1.5
    return Anatomy(
        scales=MEAN_SIZE[participant["sex"]] * (1 + SIZE_SD * (size + 0.7 * axes)),
        ventricles=4.5 * aged + 0.4 * ventricles + 1.5 * alzheimer,
        thinning=1.6 * aged + 0.12 * thinning,
        hippocampus=0.5 * aged + 0.4 * hippocampus + 3.0 * alzheimer,
        loss=0.45 * alzheimer,
        association=1.8 * alzheimer,
        deep_grey=parkinson,
        rng=rng,
    )


def _warp(anatomy: Anatomy) -> Volume:
    """Return, per voxel of the template grid, the displacement in mm to where its tissue comes from.

    Shape [3, *SHAPE]. The displacement pulls: where it points towards a structure, the structure grows.
    """
    warp = sum(
        np.stack([amplitude * spline_field(anatomy.rng, SHAPE, _knots(spacing)) for _ in range(3)])
        for spacing, amplitude in WARP
    )
    towards_ventricles, towards_hippocampus, torque = planted_directions()
    return warp + anatomy.ventricles * towards_ventricles - anatomy.hippocampus * towards_hippocampus + torque


def _head_image(anatomy: Anatomy, scanner: Scanner) -> Volume:
    """Return the noise-free intensities of a head on the template grid, white matter being 1."""
    head = template_head()
    streaks = spline_field(anatomy.rng, SHAPE, _knots(10.0))
    image = np.asarray(scanner.surroundings, np.float32)[head.surroundings]
    image *= np.clip(1 + 0.3 * streaks, 0.2, 1.8)

    folding = spline_field(anatomy.rng, SHAPE, _knots(14.0))
    inside = head.brain > 0.01
    medial_temporal, association, putamen, nigra = (volume[inside] for volume in planted_structures())
    grey, white = head.grey[inside], head.white[inside]
    tissue = grey + white
    # Raising the share of tissue to a power moves the border with CSF and leaves pure tissue as it is.
    left = tissue ** np.exp(anatomy.thinning + anatomy.association * association + 0.15 * folding[inside])
    left *= 1 - np.clip(anatomy.loss * medial_temporal, 0, 0.8)
    share = left / np.maximum(tissue, 1e-6)
    levels = scanner.grey * grey + white
    # PD-like: the putamen brightens a little, the nigra loses its contrast with what surrounds it.
    levels += anatomy.deep_grey * (1 - scanner.grey) * (0.16 * putamen - 0.22 * nigra)
    brain = (levels + head.texture[inside]) * share + scanner.fluid * (1 - left)
    weight = head.brain[inside]
    image[inside] = weight * brain + (1 - weight) * image[inside]
    return image


@cache
def planted_structures() -> tuple[Volume, Volume, Volume, Volume]:
    """Weights 0..1 of medial temporal lobe, association cortex, putamen and nigra, each [*SHAPE]."""
    medial_temporal = structure(phantom.HIPPOCAMPUS, left=LEFT_LOSS, right=RIGHT_LOSS)
    association = structure(phantom.ASSOCIATION_CORTEX)
    return medial_temporal, association, structure(phantom.PUTAMEN), structure(phantom.NIGRA)


@cache
def planted_directions() -> tuple[Volume, Volume, Volume]:
    """Displacements of 1 mm at most towards ventricles and hippocampi, and the head's torque in mm."""
    head = template_head()
    fluid = head.brain * (1 - head.grey - head.white)
    ventricles = _gradient(fluid * structure(phantom.VENTRICLES))
    hippocampus = _gradient(structure(phantom.HIPPOCAMPUS, left=LEFT_LOSS, right=RIGHT_LOSS))
    x, y, _ = phantom.coordinates()
    torque = np.zeros((3, *SHAPE), np.float32)
    # Pulling from further front makes the left occipital pole reach further back, and likewise at the front.
    left_back = np.exp(-(((x + 25) / 25) ** 2) - ((y + 90) / 40) ** 2)
    right_front = np.exp(-(((x - 25) / 25) ** 2) - ((y - 65) / 40) ** 2)
    torque[1] = TORQUE * (left_back - right_front)
    return ventricles, hippocampus, torque


def _gradient(volume: Volume) -> Volume:
    """Return the smoothed gradient of `volume`, [3, *SHAPE], scaled to a greatest length of 1."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(volume, REACH / VOXEL)))
    return (gradient / np.sqrt((gradient**2).sum(axis=0)).max()).astype(np.float32)


def _pose(rng: np.random.Generator, scanner: Scanner, scales: NDArray[np.float64]) -> tuple[Affine, Affine]:
    """Draw how the head lies in the scanner.

    Returns:
        The affine of the scan (voxel to its world) and the transform from its world to MNI world.
    """
    angles = np.clip(rng.normal(0, MAX_TURN / 2, 3), -MAX_TURN, MAX_TURN)
    turn = Rotation.from_euler("xyz", angles, degrees=True)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 3)
    tilt = Rotation.from_euler("xyz", rng.uniform(-MAX_TILT, MAX_TILT, 3), degrees=True)
    isocentre = rng.uniform(-20, 20, 3)

    # The field of view reaches from above the vertex down to the neck; its middle is below the brain's.
    centre = np.array([0.0, -12.0, -8.0])
    scan_from_template = np.eye(4)
    scan_from_template[:3, :3] = turn.as_matrix() @ np.diag(scales)
    scan_from_template[:3, 3] = isocentre + shift - scan_from_template[:3, :3] @ centre

    # A RAS grid of the scanner's voxels, then turned and flipped to the site's axis order.
    orientation = axcodes2ornt(tuple(scanner.axes))
    order = orientation[:, 0].astype(int)
    size, shape = np.empty(3), np.empty(3)
    size[order], shape[order] = scanner.voxel, scanner.shape
    ras = np.eye(4)
    ras[:3, :3] = tilt.as_matrix() @ np.diag(size)
    ras[:3, 3] = isocentre - ras[:3, :3] @ ((shape - 1) / 2)
    affine = ras @ inv_ornt_aff(_from_ras(scanner.axes), tuple(shape.astype(int)))
    return affine, np.linalg.inv(scan_from_template).astype(np.float64)


def _from_ras(axes: str) -> NDArray[np.float64]:
    return nib.orientations.ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(axes)))


def _template_voxels(matrix: Affine, shape: tuple[int, int, int], warp: Volume) -> Volume:
    """Return the template-grid coordinates that every voxel of a scan shows, [3, *shape].

    Args:
        matrix: scan voxel to MNI world, 4x4.
        shape: of the scan.
        warp: displacements on the template grid, mm, [3, *SHAPE].
    """
    matrix = np.linalg.inv(template_head().affine) @ matrix
    grid = np.indices(shape, dtype=np.float32).reshape(3, -1)
    points = (matrix[:3, :3].astype(np.float32) @ grid).reshape(3, *shape)
    points += matrix[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)
    for axis, pull in enumerate(warp):
        points[axis] += (
            ndimage.affine_transform(pull, matrix, output_shape=shape, order=1, mode="nearest") / VOXEL
        )
    return points


def _knots(spacing: float) -> tuple[int, int, int]:
    first, second, third = (max(round(size * VOXEL / spacing), 2) for size in SHAPE)
    return first, second, third


def spline_field(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...]) -> Volume:
    """Return cubic B-splines through normal noise at `knots`: a smooth field of mean 0 and SD of about 1."""
    field = rng.standard_normal(tuple(count + 3 for count in knots), dtype=np.float32)
    for size, count in zip(shape, knots, strict=True):
        # The axis that is contracted comes out last, so three rounds restore the order.
        field = np.tensordot(field, _spline_weights(size, count), axes=(0, 1))
    return (field / SPLINE_SD).astype(np.float32)


@cache
def _spline_weights(size: int, intervals: int) -> NDArray[np.float32]:
    """Return the weights [size, intervals + 3] of uniform cubic B-splines at `size` even positions."""
    position = np.linspace(0, intervals, size, endpoint=False)
    offset = position[:, None] - (np.arange(intervals + 3)[None, :] - 1)
    distance = np.abs(offset)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)
