"""How one synthetic brain is painted: an individual's tissue on the template grid, then an image of it.

The tissue maps are those of the simulated cohort (`phantom`). One smooth displacement holds everything that
moves tissue: random shape, ventricles, medial temporal shrinking and the error that registration leaves. It
and the other smooth fields are made on a grid of 6 mm and interpolated by matrix products; the tissue maps
are then interpolated once, all together, where there may be brain. Group averages like these maps have
hardly any sulci, so sulci are drawn: sheets of CSF where a random field crosses zero, white matter between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuropeft.cohorts import phantom
from neuropeft.cohorts.phantom import VOXEL, Volume, structure, template_head
from neuropeft.cohorts.simulate_scan import planted_directions, planted_structures, spline_field
from neuropeft.cohorts.synthetic import Person, axis_of_slices
from neuropeft.inputs.t1w.template import AFFINE, SHAPE

CELLS = 10  # along each edge of the cube in which tissue shares are summed up
WARP = ((48.0, 1.5), (24.0, 1.0), (12.0, 0.6))  # distance of the control points of random shape, its SD; mm
TURN, SHIFT, SCALE = 1.0, 0.5, 0.005  # what registration leaves: SDs in degrees, mm and relative size
MEDIAL_TEMPORAL_MM = 3.0  # by which the structures shrink that have lost all their tissue
FOLDING = (40.0, 0.25)  # smooth random thinning: distance of its control points and its SD
SULCI_MM = 13.0  # distance of the control points of the field that sulci follow
SULCUS = 0.35  # half width of a sulcus, in SDs of that field
SULCI_DEPTH = 16.0  # mm over which sulci fade towards the inside
GYRAL_WHITE = 0.8  # logit by which white matter wins in the middle of a gyrus, per SD of that field
EDGE_MM, EDGE_SPACING = 0.5, 24.0  # SD of the errors of the brain mask, distance of their control points
BIAS_SPACING = 60.0
MARGIN = 6.0  # mm around the template's brain where there may be brain
STEP = 3  # voxels of the template grid from one point of the coarse grid to the next
BLOCK = 8192  # spots that are interpolated at a time, so that they stay in the cache
PAD = 6  # voxels around the maps, so that interpolation needs no check of the borders
FWHM = np.sqrt(8 * np.log(2))
RIM_MM = 15.0
TO_RIM = 3.0  # mm over which the layer of CSF over the cortex fades


@dataclass(frozen=True)
class Brain:
    """A painted brain."""

    image: Volume  # float32 [91, 109, 91] on the template grid, white matter near 1, 0 outside the brain
    # float32 [3, 10, 10, 10], mean share of grey matter, white matter and CSF in each cell of the template
    # grid, which is the whole cube that models see
    tissue: Volume
    # float32 [3, 10, 10, 10], mm along x, y and z from where the template has what a cell shows, averaged
    # over the cell, 0 outside the brain
    displacement: Volume
    measured: dict[str, float]  # the `MEASURED_ANATOMY` of `synthetic`


def paint(person: Person) -> Brain:
    """Paint the brain of one row of `synthetic.people`."""
    factors = person.factors
    rng = np.random.default_rng([person.seed, 1])
    template = load_template()
    pull, sulci, fold, edge, bias = _fields(rng, factors)
    displacement = VOXEL * (pull - template.points)
    maps = _sample(pull)
    grey, white, csf = _tissue(maps, sulci, fold, factors)
    inside = (maps[3] + factors["mask_mm"] + EDGE_MM * edge > 0).astype(np.float32)

    image = grey * factors["grey_level"] + white + factors["texture"] * maps[2] * (grey + white)
    image += csf * factors["csf_level"]
    image = np.maximum(image, 0) ** factors["gamma"] * np.exp(factors["bias"] * bias)
    image = _blurred(image, factors, axis_of_slices(person.seed))
    # Rician noise is normal where there is signal, as everywhere inside a brain.
    image = np.abs(image + factors["noise"] * rng.standard_normal(len(image), dtype=np.float32)) * inside

    shares = np.stack([grey, white, csf]) * inside
    return Brain(
        image=_whole(image),
        tissue=_cells(shares),
        displacement=_cells(displacement * inside),
        measured=_measured(shares, inside, maps[3], template.near_ventricles),
    )


# -- the template ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Template:
    """What all brains share. The box is the part of the template grid where there may be brain."""

    box: tuple[slice, ...]  # its place in the template grid
    # [X * Y * Z, 4] of the box with `PAD` voxels around: grey, white, texture, mm inside the brain
    maps: NDArray[np.float32]
    shape: tuple[int, int, int]  # X, Y, Z
    # positions in the flattened box where there may be brain; what follows has a value for each
    spots: NDArray[np.intp]
    points: Volume  # [3, spots] their coordinates in `maps`, voxels
    medial_temporal: Volume  # weight of the medial temporal lobe
    near_ventricles: NDArray[np.bool_]  # whether CSF there is ventricular
    coarse: Volume  # [3, x, y, z] world coordinates of the coarse grid, mm
    ventricles: Volume  # [3, x, y, z] displacement by 1 mm at most towards the ventricles
    hippocampus: Volume  # the same towards the hippocampi
    association: Volume  # [x, y, z] weight of the association cortex


@cache
def load_template() -> _Template:
    """Return what all brains share; cached, because it takes some seconds."""
    head = template_head()
    first = np.rint((AFFINE[:3, 3] - phantom.ORIGIN) / VOXEL).astype(int)
    brain = head.brain > 0.5
    depth = ndimage.distance_transform_edt(brain) - ndimage.distance_transform_edt(~brain)
    # Distances are to the centres of voxels: the edge lies half a voxel before.
    depth = VOXEL * (depth - 0.5 * np.sign(depth)).astype(np.float32)
    near = np.argwhere(depth > -MARGIN)
    low = np.maximum(near.min(axis=0), first)
    high = np.minimum(near.max(axis=0) + 1, first + SHAPE)
    box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    padded = tuple(slice(start - PAD, stop + PAD) for start, stop in zip(low, high, strict=True))
    coarse = tuple(slice(start, stop + STEP, STEP) for start, stop in zip(low, high, strict=True))
    maps = np.stack([volume[padded] for volume in (head.grey, head.white, head.texture, depth)], axis=-1)
    spots = np.flatnonzero(depth[box] > -MARGIN)
    size = tuple(high - low)
    ventricles, hippocampus, _ = planted_directions()
    medial_temporal, association, _, _ = planted_structures()
    wide = [phantom.Capsule(part.start, part.end, part.radius + 4) for part in phantom.VENTRICLES]
    return _Template(
        box=tuple(slice(start, stop) for start, stop in zip(low - first, high - first, strict=True)),
        maps=np.ascontiguousarray(maps.reshape(-1, 4)),
        shape=maps.shape[:3],
        spots=spots,
        points=(np.stack(np.unravel_index(spots, size)) + PAD).astype(np.float32),
        medial_temporal=medial_temporal[box].ravel()[spots],
        near_ventricles=(structure(wide)[box] > 0.5).ravel()[spots],
        coarse=phantom.coordinates()[(slice(None), *coarse)],
        ventricles=ventricles[(slice(None), *coarse)],
        hippocampus=hippocampus[(slice(None), *coarse)],
        association=association[coarse],
    )


# -- anatomy ---------------------------------------------------------------------------------------


def _fields(rng: np.random.Generator, factors: dict[str, float]) -> tuple[Volume, ...]:
    """Return where the tissue of each spot comes from, and the smooth fields, at the spots.

    Returns:
        The positions in the template's `maps`, voxels [3, spots]; then, [spots] each, the field that sulci
        follow, the logarithm of the exponent that thins tissue, the error of the mask's edge in SDs, and the
        bias field in SDs.
    """
    template = load_template()
    shape = template.association.shape

    def field(spacing: float) -> Volume:
        knots = tuple(max(round(STEP * VOXEL * size / spacing), 2) for size in shape)
        return spline_field(rng, shape, knots)

    pull = _misregistration(rng, template.coarse)
    for spacing, deviation in WARP:
        pull += deviation * np.stack([field(spacing) for _ in range(3)])
    pull += factors["ventricle_mm"] * template.ventricles
    pull -= MEDIAL_TEMPORAL_MM * factors["medial_temporal_loss"] * template.hippocampus
    sulci = field(SULCI_MM)
    fold = factors["thinning"] + factors["association_thinning"] * template.association
    fold += FOLDING[1] * field(FOLDING[0])
    coarse = np.stack([*pull / VOXEL, sulci, fold, field(EDGE_SPACING), field(BIAS_SPACING)])
    weights = [
        _linear_weights(size - 2 * PAD, knots) for size, knots in zip(template.shape, shape, strict=True)
    ]
    at_spots = _along_axes(coarse.astype(np.float32), weights).reshape(len(coarse), -1)[:, template.spots]
    return template.points + at_spots[:3], *at_spots[3:]


def _misregistration(rng: np.random.Generator, coarse: Volume) -> Volume:
    """Return the displacement of the error that registration leaves, mm [3, x, y, z]."""
    turn = Rotation.from_euler("xyz", rng.normal(0, TURN, 3), degrees=True).as_matrix()
    matrix = turn @ np.diag(1 + rng.normal(0, SCALE, 3)) - np.eye(3)
    shift = rng.normal(0, SHIFT, 3) - matrix @ coarse.mean(axis=(1, 2, 3))
    return np.tensordot(matrix, coarse, axes=1) + shift.reshape(3, 1, 1, 1)


def _along_axes(volumes: Volume, weights: Sequence[NDArray[np.float32]]) -> Volume:
    """Multiply each axis of [n, x, y, z] by a matrix [new, old]; returns [n, new x, new y, new z].

    Last axis first: what shrinks is then small early on, and nothing is transposed.
    """
    first, second, third = weights
    volumes = second @ (volumes @ third.T)
    n, x, y, z = volumes.shape
    return (first @ volumes.reshape(n, x, y * z)).reshape(n, len(first), y, z)


@cache
def _linear_weights(size: int, knots: int) -> NDArray[np.float32]:
    """Return the weights [size, knots] of linear interpolation between knots `STEP` voxels apart."""
    distance = np.abs(np.arange(size)[:, None] / STEP - np.arange(knots))
    return np.maximum(0, 1 - distance).astype(np.float32)


def _sample(points: Volume) -> Volume:
    """Interpolate the template's `maps` at `points` [3, spots]; returns [4, spots]."""
    for axis, size in zip(points, load_template().shape, strict=True):
        np.clip(axis, 0, size - 1.001, out=axis)
    sampled = np.empty((points.shape[1], 4), np.float32)
    for start in range(0, len(sampled), BLOCK):
        part = slice(start, start + BLOCK)
        sampled[part] = _sample_block(points[:, part])
    return np.ascontiguousarray(sampled.T)


def _sample_block(points: Volume) -> Volume:
    """Interpolate the template's `maps` at `points` [3, n]; returns [n, 4]."""
    template = load_template()
    _, ny, nz = template.shape
    lowest = points.astype(np.intp)
    after = points - lowest
    before = 1 - after
    corner = (lowest[0] * ny + lowest[1]) * nz + lowest[2]
    sampled = np.zeros((len(corner), 4), np.float32)
    for dx, wx in enumerate((before[0], after[0])):
        for dy, wy in enumerate((before[1], after[1])):
            for dz, wz in enumerate((before[2], after[2])):
                values = template.maps.take(corner + ((dx * ny + dy) * nz + dz), axis=0)
                values *= (wx * wy * wz)[:, None]
                sampled += values
    return sampled


def _tissue(
    maps: Volume, sulci: Volume, fold: Volume, factors: dict[str, float]
) -> tuple[Volume, Volume, Volume]:
    """Return the shares of grey matter, white matter and CSF at the spots."""
    grey, white, _, depth = maps
    tissue = np.clip(grey + white, 1e-6, 1)
    superficial = np.exp(np.minimum(-depth / SULCI_DEPTH, 0))
    sheet = np.exp(-((sulci / SULCUS) ** 2)) * superficial
    # Raising the share of tissue to a power moves the border with CSF and leaves pure tissue as it is.
    left = (tissue * (1 - factors["sulcal_opening"] * sheet)) ** np.exp(fold)
    left *= 1 - np.clip(factors["medial_temporal_loss"] * load_template().medial_temporal, 0, 0.8)
    left *= np.clip((depth - factors["rim_csf_mm"]) / TO_RIM + 0.5, 0, 1)
    # The field's absolute value is 0.8 on average.
    shift = factors["white_shift"] + GYRAL_WHITE * (np.abs(sulci) - 0.8) * superficial
    odds = white * np.exp(shift)
    white_left = left * odds / np.maximum(odds + grey, 1e-6)
    return left - white_left, white_left, 1 - left


# -- image and summaries ---------------------------------------------------------------------------


def _blurred(image: Volume, factors: dict[str, float], axis: int) -> Volume:
    """Blur values at the spots."""
    widths = np.full(3, factors["blur_mm"])
    widths[axis] += factors["slice_blur_mm"]
    template = load_template()
    box = _boxed(image)
    blurred = ndimage.gaussian_filter(box, widths / FWHM / VOXEL, truncate=3)
    return blurred.ravel()[template.spots]


def _boxed(values: Volume) -> Volume:
    """Put values at the spots, [..., spots], into the box; 0 elsewhere."""
    template = load_template()
    size = tuple(length - 2 * PAD for length in template.shape)
    box = np.zeros((*values.shape[:-1], int(np.prod(size))), np.float32)
    box[..., template.spots] = values
    return box.reshape(*values.shape[:-1], *size)


def _whole(values: Volume) -> Volume:
    image = np.zeros(SHAPE, np.float32)
    image[load_template().box] = _boxed(values)
    return image


def _cells(shares: Volume) -> Volume:
    """Return the mean of [3, spots] over each cell of the template grid, [3, CELLS, CELLS, CELLS]."""
    box = load_template().box
    return _along_axes(
        _boxed(shares), [_cell_weights(size)[:, part] for size, part in zip(SHAPE, box, strict=True)]
    )


@cache
def _cell_weights(size: int) -> NDArray[np.float32]:
    """Return [CELLS, size]: how much each voxel adds to the mean over each cell of an axis."""
    edges = np.linspace(0, size, CELLS + 1)
    starts = np.arange(size)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.maximum(overlap, 0) * CELLS / size).astype(np.float32)


def _measured(
    shares: Volume, inside: Volume, depth: Volume, near_ventricles: NDArray[np.bool_]
) -> dict[str, float]:
    volume = inside.sum()
    rim = (depth < RIM_MM) * inside
    return {
        "csf_share": float(shares[2].sum() / volume),
        "white_share": float(shares[1].sum() / volume),
        "ventricle_csf_share": float(shares[2][near_ventricles].sum() / volume),
        "rim_grey_share": float((shares[0] * rim).sum() / rim.sum()),
    }
