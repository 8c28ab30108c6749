"""The template head that simulated scans are made from: a brain of tissue maps inside anatomical shells.

The brain is nilearn's ICBM 152 2009a symmetric tissue maps (Fonov et al. 2009, NeuroImage 47:S102). What
lies around it is drawn: subarachnoid CSF, skull with marrow, scalp, face with sinuses and eyes, neck with
spinal cord. Everything lives on one 2 mm grid in MNI152 world coordinates (RAS, millimetres).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Volume = NDArray[np.float32]
Point = tuple[float, float, float]

VOXEL = 2  # mm
ORIGIN = np.array([-104.0, -134.0, -160.0])  # world coordinates of the first voxel's centre, mm
SHAPE = (105, 128, 139)

# What fills the head outside the brain; the numbers are the labels of Head.surroundings.
AIR, FLUID, BONE, MARROW, FAT, MUSCLE, CORD = range(7)

# Shells by their outer distance from the hull of the brain, mm; on the grid distances are 2, 2.8, 3.5, 4 ...
SHELLS = ((FLUID, 2.0), (BONE, 4.0), (MARROW, 7.0), (BONE, 9.0), (FAT, 14.4))
SKIN = 4.5  # mm of bright subcutaneous fat below the surface of face and neck
EDGE = 2.0  # mm over which a drawn structure fades
SHARPNESS = 2.0  # exponent that turns the population's tissue probabilities into one brain's tissue


@dataclass(frozen=True)
class Capsule:
    """A segment with round ends: the shape that small deep structures are drawn by, in MNI millimetres."""

    start: Point
    end: Point
    radius: float


# The right-hand side; `structure` mirrors them.
HIPPOCAMPUS = (
    Capsule((23, -5, -21), (27, -20, -16), 7.0),
    Capsule((27, -20, -16), (28, -36, -4), 6.0),
    Capsule((22, -6, -31), (24, -24, -22), 6.0),  # entorhinal and parahippocampal cortex
)
ASSOCIATION_CORTEX = (  # what Alzheimer's disease thins next: temporal and parietal lobes, precuneus
    Capsule((48, 0, -30), (54, -45, -4), 20.0),
    Capsule((44, -58, 36), (28, -70, 46), 20.0),
    Capsule((5, -45, 34), (8, -68, 34), 14.0),
)
PUTAMEN = (Capsule((24, 12, -2), (29, -10, 4), 6.0),)
NIGRA = (Capsule((8, -15, -13), (12, -20, -11), 4.0),)
VENTRICLES = (
    Capsule((6, 28, 6), (14, -2, 22), 9.0),
    Capsule((14, -2, 22), (27, -40, 14), 12.0),
    Capsule((30, -36, 2), (33, -12, -20), 7.0),  # temporal horn
    Capsule((0, 0, 0), (0, -26, 4), 6.0),  # third ventricle
)


@dataclass(frozen=True)
class Head:
    """The template head; every volume has SHAPE and lies on the grid of `affine`."""

    grey: Volume  # share of grey matter in a voxel of the brain, 0..1
    white: Volume  # share of white matter; the rest of a brain voxel is CSF
    # what the template's T1 shows beyond its tissue mixture, in units of white matter's intensity
    texture: Volume
    brain: Volume  # soft brain mask, 0..1
    surroundings: NDArray[np.uint8]  # label of the material outside the brain (AIR .. CORD)
    affine: NDArray[np.float64]  # voxel to MNI world, 4x4


@cache
def template_head() -> Head:
    """Build the template head; cached, because loading the maps takes some seconds."""
    from nilearn import datasets

    grey = _on_grid(datasets.load_mni152_gm_template(resolution=VOXEL))
    white = _on_grid(datasets.load_mni152_wm_template(resolution=VOXEL))
    t1 = _on_grid(datasets.load_mni152_template(resolution=VOXEL))
    mask = _on_grid(datasets.load_mni152_brain_mask(resolution=VOXEL)) > 0.5
    fluid = np.clip(1 - grey - white, 0, 1)
    texture = _texture(t1, grey, white, fluid, mask)
    total = grey**SHARPNESS + white**SHARPNESS + fluid**SHARPNESS
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = ORIGIN
    return Head(
        grey=np.where(mask, grey**SHARPNESS / total, 0).astype(np.float32),
        white=np.where(mask, white**SHARPNESS / total, 0).astype(np.float32),
        texture=texture,
        brain=ndimage.gaussian_filter(mask.astype(np.float32), 0.5),
        surroundings=_surroundings(mask),
        affine=affine,
    )


def structure(capsules: Sequence[Capsule], left: float = 1.0, right: float = 1.0) -> Volume:
    """Return a mask of capsules on both sides of the midline: 1 inside, 0 outside, a soft edge.

    Args:
        capsules: the structure on the right-hand side (x > 0).
        left: weight of its mirror image.
        right: weight of the structure as given.
    """
    points = coordinates()
    inside = np.zeros(SHAPE, np.float32)
    for capsule in capsules:
        for weight, sign in ((right, 1.0), (left, -1.0)):
            start, end = ((sign * point[0], *point[1:]) for point in (capsule.start, capsule.end))
            distance = _distance_to_segment(points, start, end)
            inside = np.maximum(inside, weight * 0.5 * (1 - np.tanh((distance - capsule.radius) / EDGE)))
    return inside.astype(np.float32)


def _on_grid(image) -> Volume:
    """Place a template map of the same voxel size on the larger grid; no interpolation."""
    data = np.clip(image.get_fdata(dtype=np.float32), 0, 1)
    first = np.rint((image.affine[:3, 3] - ORIGIN) / VOXEL).astype(int)
    volume = np.zeros(SHAPE, np.float32)
    volume[tuple(slice(start, start + size) for start, size in zip(first, data.shape, strict=True))] = data
    return volume


def _texture(t1: Volume, grey: Volume, white: Volume, fluid: Volume, mask: NDArray[np.bool_]) -> Volume:
    """Return the part of the template's T1 that its tissue mixture does not explain."""
    mixture = np.stack([grey[mask], white[mask], fluid[mask]], axis=1)
    weights, *_ = np.linalg.lstsq(mixture, t1[mask], rcond=None)
    texture = np.zeros(SHAPE, np.float32)
    texture[mask] = np.clip((t1[mask] - mixture @ weights) / weights[1], -0.12, 0.12)
    return texture


def _surroundings(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Label what lies outside the brain, from the surface inwards."""
    points = coordinates()
    hull = _closed(mask, radius=16.0)
    from_hull = _distance(hull)
    skull_end, scalp_end = SHELLS[-2][1], SHELLS[-1][1]
    head = _smooth((from_hull < scalp_end) | _face_and_neck(points))
    depth = ndimage.distance_transform_edt(head).astype(np.float32) * VOXEL

    labels = np.full(SHAPE, AIR, np.uint8)
    labels[head] = MUSCLE
    labels[head & (depth < SKIN)] = FAT
    for label, capsule in _face_parts():
        labels[head & (_distance_to_segment(points, capsule.start, capsule.end) < capsule.radius)] = label
    shell_start = -1.0
    for label, shell_end in SHELLS:
        shell = head & (from_hull > shell_start) & (from_hull <= shell_end)
        # Below the skull base the shells stop at the bone: face and neck follow, not scalp.
        labels[shell & ((from_hull <= skull_end) | (depth <= scalp_end - skull_end))] = label
        shell_start = shell_end
    from_brain = _distance(mask)
    labels[hull & ~mask] = BONE
    labels[hull & (from_brain < 3.0)] = FLUID
    for label, radius in ((BONE, 15.0), (MARROW, 13.0), (BONE, 10.5), (FLUID, 8.5), (CORD, 5.0)):
        spine = _distance_to_segment(points, (0, -44, -74), (0, -52, -170)) < radius
        labels[spine & (points[2] < -66) & ~mask] = label
    return labels


def _face_and_neck(points: Volume) -> NDArray[np.bool_]:
    ellipsoids: tuple[tuple[Point, Point], ...] = (
        ((0, 30, -45), (66, 62, 60)),  # middle of the face
        ((0, 38, -88), (52, 56, 42)),  # jaw
        ((0, 92, -48), (13, 20, 20)),  # nose
        ((0, -38, -130), (62, 62, 95)),  # neck
    )
    inside = np.zeros(SHAPE, bool)
    for centre, radii in ellipsoids:
        offsets = (points - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
        inside |= (offsets**2).sum(axis=0) < 1
    return inside


def _face_parts() -> list[tuple[int, Capsule]]:
    right = [
        (FAT, Capsule((30, 48, -32), (32, 66, -34), 19.0)),  # orbit
        (MUSCLE, Capsule((22, 30, -26), (30, 52, -33), 4.0)),  # optic nerve and its muscles
        (FLUID, Capsule((32, 66, -34), (32, 67, -34), 12.0)),  # eye
        (AIR, Capsule((28, 52, -62), (27, 66, -62), 13.0)),  # maxillary sinus
        (FAT, Capsule((48, 30, -70), (45, 45, -95), 9.0)),  # cheek
        (MARROW, Capsule((44, 0, -90), (14, 72, -108), 6.0)),  # jaw bone
        (AIR, Capsule((66, -18, -38), (78, -16, -40), 3.5)),  # ear canal
        (AIR, Capsule((50, -38, -44), (56, -36, -50), 6.0)),  # mastoid cells
    ]
    middle = [
        (AIR, Capsule((0, 24, -48), (0, 84, -56), 9.0)),  # nasal cavity
        (AIR, Capsule((0, 16, -62), (0, 4, -160), 8.0)),  # throat
        (BONE, Capsule((-24, 60, -82), (24, 60, -82), 5.0)),  # palate and teeth
        (AIR, Capsule((-5, 70, -12), (5, 70, -18), 5.0)),  # frontal sinus
    ]
    mirrored = [
        (label, Capsule(_mirror(part.start), _mirror(part.end), part.radius)) for label, part in right
    ]
    return [*right, *mirrored, *middle]


def _mirror(point: Point) -> Point:
    return (-point[0], point[1], point[2])


@cache
def coordinates() -> Volume:
    """World coordinates of every voxel, [3, *SHAPE], mm."""
    axes = [start + VOXEL * np.arange(size) for start, size in zip(ORIGIN, SHAPE, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _distance_to_segment(points: Volume, start: Sequence[float], end: Sequence[float]) -> Volume:
    first = np.asarray(start, np.float32).reshape(3, 1, 1, 1)
    along = np.asarray(end, np.float32).reshape(3, 1, 1, 1) - first
    share = np.clip(((points - first) * along).sum(axis=0) / max(float((along**2).sum()), 1e-6), 0, 1)
    return np.sqrt(((points - first - share * along) ** 2).sum(axis=0))


def _distance(mask: NDArray[np.bool_]) -> Volume:
    """Distance of every voxel outside `mask` to it, mm."""
    return ndimage.distance_transform_edt(~mask).astype(np.float32) * VOXEL


def _closed(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Close `mask` with a ball of `radius` mm by two distance transforms, far quicker than morphology."""
    grown = _distance(mask) < radius
    return mask | (ndimage.distance_transform_edt(grown) * VOXEL > radius)


def _smooth(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ndimage.gaussian_filter(mask.astype(np.float32), 2.5) > 0.5
