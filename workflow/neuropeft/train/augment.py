"""Random changes to a batch of volumes, drawn and applied on the device.

The first axis of a volume runs from left to right. All numbers of a batch are drawn at once and then cut to
the rows that this process holds, so that a volume is changed in the same way however many processes share
the batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropeft.errors import UserError
from neuropeft.train.data import generator

KNOTS = 3  # of the bias field along each axis
# Uniform numbers per volume: flip, 3 angles, size, 3 shifts, contrast, brightness, bend, bias field,
# sharpness.
DRAWS = 12 + KNOTS**3


@dataclass(frozen=True)
class Augmentation:
    """Largest changes; zero or false is off.

    Attributes:
        flip: Swap left and right in half of the volumes.
        rotate_deg: Largest rotation about each axis, degrees.
        scale: Largest relative change of size.
        translate_voxels: Largest shift along each axis, voxels.
        intensity: Largest relative change of contrast, and largest shift of brightness in standard
            deviations.
        noise: Standard deviation of added Gaussian noise.
        contrast: Largest bend of the curve that maps intensities, up or down, which stays monotone below 1:
            another contrast between the tissues.
        sharpness: Largest weight, up or down, of the detail that a mean over 3^3 voxels takes away: another
            resolution.
        bias: Largest logarithm of a smooth field that they are multiplied with: another coil.
    """

    flip: bool = False
    rotate_deg: float = 0.0
    scale: float = 0.0
    translate_voxels: float = 0.0
    intensity: float = 0.0
    noise: float = 0.0
    contrast: float = 0.0
    bias: float = 0.0
    sharpness: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is changed."""
        return self != Augmentation()

    @property
    def moves(self) -> bool:
        """Whether volumes are resampled."""
        return bool(self.rotate_deg or self.scale or self.translate_voxels)


def read_augmentation(options: Mapping[str, Any] | None) -> Augmentation:
    """Return the augmentation that a configuration describes; absent or false keys are off."""
    options = options or {}
    unknown = sorted(set(options) - set(Augmentation.__dataclass_fields__))
    if unknown:
        known = ", ".join(Augmentation.__dataclass_fields__)
        raise UserError(f"training.augment has no key {unknown[0]!r}; choose from: {known}")
    chosen: dict[str, Any] = {key: value for key, value in options.items() if value}
    return Augmentation(**chosen)


def augment(
    volumes: Tensor,
    options: Augmentation,
    seed: int,
    step: int,
    first: int = 0,
    total: int | None = None,
) -> Tensor:
    """Return changed `volumes` [B, 1, S, S, S]; the same arguments give the same changes.

    Args:
        volumes: Volumes `first` to `first + B` of a batch.
        options: What to change, and how much.
        seed: Seed of the run.
        step: Step of the run.
        first: Place of the first of `volumes` in the batch of all processes.
        total: Size of the batch of all processes; B if there is one process.
    """
    size, device = volumes.shape[0], volumes.device
    random = generator(device, seed, "augment", step)
    draws = torch.rand(total or size, DRAWS, generator=random, device=device)[first : first + size]
    draws = draws * 2 - 1  # [B, DRAWS], from -1 to 1
    if options.flip:
        volumes = torch.where(draws[:, 0].view(-1, 1, 1, 1, 1) > 0, volumes.flip(2), volumes)
    if options.moves:
        theta = _affine(draws[:, 1:8], options, volumes.shape[-1])  # [B, 3, 4]
        grid = F.affine_grid(theta, list(volumes.shape), align_corners=False)  # [B, S, S, S, 3]
        # The border of a z-scored volume is background, which is not zero: repeat it outside.
        volumes = F.grid_sample(volumes, grid, padding_mode="border", align_corners=False)
    if options.sharpness:
        smooth = F.avg_pool3d(volumes, 3, stride=1, padding=1, count_include_pad=False)
        volumes = volumes.lerp(smooth, options.sharpness * draws[:, -1].view(-1, 1, 1, 1, 1))
    if options.contrast or options.bias:
        volumes = _contrast(volumes, draws[:, 10:-1], options)
    if options.intensity:
        contrast, brightness = (options.intensity * draws[:, 8:10]).view(-1, 2, 1, 1, 1, 1).unbind(1)
        volumes = volumes * (1 + contrast) + brightness
    if options.noise:
        volumes = volumes + options.noise * _noise(volumes, seed, step, first)
    return volumes


def _contrast(volumes: Tensor, draws: Tensor, options: Augmentation) -> Tensor:
    """Return volumes [B, 1, S, S, S] of another contrast and bias field, for `draws` [B, 1 + KNOTS^3]."""
    flat = volumes.flatten(1)
    low, high = (edge.view(-1, 1, 1, 1, 1) for edge in flat.aminmax(dim=1))
    above = volumes - low
    if options.contrast:
        # The background stays what it is, and so does the brightest voxel: v + c v (1 - v) between 0 and 1.
        bend = options.contrast * draws[:, 0].view(-1, 1, 1, 1, 1)
        above.mul_((above * (-bend / (high - low).clamp_min(1e-6))).add_(1 + bend))
    if options.bias:
        knots = (options.bias * draws[:, 1:]).exp().view(-1, 1, KNOTS, KNOTS, KNOTS)
        above.mul_(_smooth_field(knots, volumes.shape[-1]))
    return above.add_(low)


def _smooth_field(knots: Tensor, edge: int) -> Tensor:
    """Interpolate `knots` [B, 1, K, K, K] linearly to [B, 1, edge, edge, edge], axis by axis."""
    places = torch.linspace(0, knots.shape[-1] - 1, edge, device=knots.device)
    distance = (places[:, None] - torch.arange(knots.shape[-1], device=knots.device)).abs()
    weights = (1 - distance).clamp_min(0)  # [edge, K]
    planes = weights @ (knots @ weights.T)  # [B, 1, K, edge, edge]
    return torch.einsum("xk,bckyz->bcxyz", weights, planes)


def _affine(draws: Tensor, options: Augmentation, edge: int) -> Tensor:
    """Return the maps [B, 3, 4] from places in the result to places in the volume, for `draws` [B, 7]."""
    angles = draws[:, :3] * math.radians(options.rotate_deg)
    matrix = torch.eye(3, device=draws.device).expand(len(draws), 3, 3)
    for axis in range(3):
        matrix = matrix @ _rotation(angles[:, axis], axis)
    matrix = matrix * (1 + options.scale * draws[:, 3]).view(-1, 1, 1)
    shift = draws[:, 4:7, None] * options.translate_voxels * 2 / edge  # the volume runs from -1 to 1
    return torch.cat([matrix, shift], dim=2)


def _rotation(angle: Tensor, axis: int) -> Tensor:
    """Return rotations [B, 3, 3] by `angle` [B] radians about an axis."""
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        0: [one, zero, zero, zero, cosine, -sine, zero, sine, cosine],
        1: [cosine, zero, sine, zero, one, zero, -sine, zero, cosine],
        2: [cosine, -sine, zero, sine, cosine, zero, zero, zero, one],
    }[axis]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def _noise(volumes: Tensor, seed: int, step: int, first: int) -> Tensor:
    # Volume by volume: the noise of a whole batch over many processes would not fit into memory.
    noise = torch.empty_like(volumes)
    for i in range(len(volumes)):
        noise[i].normal_(generator=generator(volumes.device, seed, "noise", step, first + i))
    return noise
