"""Random changes to a batch of volumes or images, drawn and applied on the device.

The first axis of a volume runs from left to right, and the last one of an image. All numbers of a batch are
drawn at once and then cut to the rows that this process holds, so that a volume is changed in the same way
however many processes share the batch.
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
IMAGE_DRAWS = 6  # and per image: area, ratio and 2 places of a crop, saturation, hue
STRETCH = 4 / 3  # largest ratio of the edges of a crop (Szegedy 2015)
HUE_DEG = 90  # turn of the hue at `colour` 1: 36 degrees at the usual 0.4 (Chen 2020, SimCLR)
# RGB -> luminance and two axes of colour, of NTSC.
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
FROM_YIQ = torch.linalg.inv(TO_YIQ)


@dataclass(frozen=True)
class Augmentation:
    """Largest changes; zero or false is off."""

    flip: bool = False  # swap left and right in half of the volumes
    rotate_deg: float = 0.0  # largest rotation about each axis, degrees
    scale: float = 0.0  # largest relative change of size
    translate_voxels: float = 0.0  # largest shift along each axis, voxels
    # Largest relative change of contrast, and largest shift of brightness in standard deviations
    intensity: float = 0.0
    noise: float = 0.0  # standard deviation of added Gaussian noise
    # Largest bend of the curve that maps intensities, up or down, which stays monotone below 1: another
    # contrast between the tissues
    contrast: float = 0.0
    bias: float = 0.0  # largest logarithm of a smooth field that they are multiplied with: another coil
    # Largest weight, up or down, of the detail that a mean over 3^3 voxels takes away: another resolution
    sharpness: float = 0.0
    # Largest share of an image's area that is cut away, before the rest is stretched to its size
    crop: float = 0.0
    # Largest relative change of an image's saturation, and of its hue in units of `HUE_DEG`
    colour: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is changed."""
        return self != Augmentation()

    @property
    def of_places(self) -> "Augmentation":
        """Those changes that move what is seen, and so move labels, too."""
        moving = ("flip", "rotate_deg", "scale", "translate_voxels", "crop")
        return Augmentation(**{name: getattr(self, name) for name in moving})

    @property
    def moves(self) -> bool:
        """Whether volumes are resampled."""
        return bool(self.rotate_deg or self.scale or self.translate_voxels or self.crop)


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
    mode: str = "bilinear",
) -> Tensor:
    """Return changed `volumes` [B, C, *S]; the same arguments give the same changes.

    Args:
        volumes: Volumes, or images, `first` to `first + B` of a batch.
        options: What to change, and how much.
        seed: Seed of the run.
        step: Step of the run.
        first: Place of the first of `volumes` in the batch of all processes.
        total: Size of the batch of all processes; B if there is one process.
        mode: How they are resampled, as `grid_sample` names it; label maps by `nearest`.

    Raises:
        UserError: `crop` is wanted of volumes, or `colour` of what has no three channels.
    """
    size, device, dims = volumes.shape[0], volumes.device, volumes.ndim - 2
    _check(options, dims, volumes.shape[1])
    random = generator(device, seed, "augment", step)
    draws = torch.rand(total or size, DRAWS, generator=random, device=device)[first : first + size]
    draws = draws * 2 - 1  # [B, DRAWS], from -1 to 1
    more = draws.new_zeros(0)
    if options.crop or options.colour:
        random = generator(device, seed, "augment image", step)
        more = torch.rand(total or size, IMAGE_DRAWS, generator=random, device=device)[first : first + size]
    if options.flip:
        mirrored = volumes.flip(2 if dims == 3 else 3)
        volumes = torch.where(_each(draws[:, 0], volumes) > 0, mirrored, volumes)
    if options.moves:
        edge = volumes.shape[-1]
        move = (
            _affine(draws[:, 1:8], options, edge) if dims == 3 else _move(draws[:, 1:8], more, options, edge)
        )
        # [B, dims, dims + 1] -> [B, *S, dims]
        grid = F.affine_grid(move, list(volumes.shape), align_corners=False)
        # The border of a z-scored volume is background, which is not zero: repeat it outside.
        volumes = F.grid_sample(volumes, grid, mode, padding_mode="border", align_corners=False)
    if options.sharpness:
        pool = F.avg_pool3d if dims == 3 else F.avg_pool2d
        smooth = pool(volumes, 3, stride=1, padding=1, count_include_pad=False)
        volumes = volumes.lerp(smooth, options.sharpness * _each(draws[:, -1], volumes))
    if options.contrast or options.bias:
        volumes = _contrast(volumes, draws[:, 10:-1], options)
    if options.intensity:
        contrast, brightness = (_each(part, volumes) for part in (options.intensity * draws[:, 8:10]).T)
        volumes = volumes * (1 + contrast) + brightness
    if options.colour:
        volumes = _colour(volumes, options.colour * (2 * more[:, 4:] - 1))
    if options.noise:
        volumes = volumes + options.noise * _noise(volumes, seed, step, first)
    return volumes


def _check(options: Augmentation, dims: int, channels: int) -> None:
    if options.crop and dims != 2:
        raise UserError("augment.crop is for images; of volumes use scale, or set it to 0")
    if options.colour and (dims, channels) != (2, 3):
        raise UserError("augment.colour is for images of three channels; set it to 0")


def _each(numbers: Tensor, volumes: Tensor) -> Tensor:
    """Return a number [B] for each of `volumes` [B, C, *S], as [B, 1, ...]."""
    return numbers.view(-1, *[1] * (volumes.ndim - 1))


def _colour(images: Tensor, draws: Tensor) -> Tensor:
    """Return images [B, 3, H, W] of other saturation and hue, for `draws` [B, 2]; luminance stays."""
    saturation, angle = 1 + draws[:, 0], draws[:, 1] * math.radians(HUE_DEG)
    cosine, sine = saturation * angle.cos(), saturation * angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [one, zero, zero, zero, cosine, -sine, zero, sine, cosine]
    turned = torch.stack(rows, dim=1).view(-1, 3, 3)
    matrix = FROM_YIQ.to(images.device) @ turned @ TO_YIQ.to(images.device)  # [B, 3, 3]
    return (matrix @ images.flatten(2)).view_as(images)


def _contrast(volumes: Tensor, draws: Tensor, options: Augmentation) -> Tensor:
    """Return volumes [B, C, *S] of another contrast and bias field, for `draws` [B, 1 + KNOTS^3]."""
    flat, dims = volumes.flatten(1), volumes.ndim - 2
    low, high = (_each(edge, volumes) for edge in flat.aminmax(dim=1))
    above = volumes - low
    if options.contrast:
        # The background stays what it is, and so does the brightest voxel: v + c v (1 - v) between 0 and 1.
        bend = options.contrast * _each(draws[:, 0], volumes)
        above.mul_((above * (-bend / (high - low).clamp_min(1e-6))).add_(1 + bend))
    if options.bias:
        knots = (options.bias * draws[:, 1 : 1 + KNOTS**dims]).exp().view(-1, 1, *[KNOTS] * dims)
        above.mul_(_smooth_field(knots, volumes.shape[-1]))
    return above.add_(low)


def _smooth_field(knots: Tensor, edge: int) -> Tensor:
    """Interpolate `knots` [B, 1, K, ...] linearly to [B, 1, edge, ...], axis by axis."""
    places = torch.linspace(0, knots.shape[-1] - 1, edge, device=knots.device)
    distance = (places[:, None] - torch.arange(knots.shape[-1], device=knots.device)).abs()
    weights = (1 - distance).clamp_min(0)  # [edge, K]
    planes = weights @ (knots @ weights.T)  # [B, 1, K, edge, edge], or [B, 1, edge, edge] of an image
    return torch.einsum("xk,bckyz->bcxyz", weights, planes) if planes.ndim == 5 else planes


def _affine(draws: Tensor, options: Augmentation, edge: int) -> Tensor:
    """Return the maps [B, 3, 4] from places in the result to places in the volume, for `draws` [B, 7]."""
    angles = draws[:, :3] * math.radians(options.rotate_deg)
    matrix = torch.eye(3, device=draws.device).expand(len(draws), 3, 3)
    for axis in range(3):
        matrix = matrix @ _rotation(angles[:, axis], axis)
    matrix = matrix * (1 + options.scale * draws[:, 3]).view(-1, 1, 1)
    shift = draws[:, 4:7, None] * options.translate_voxels * 2 / edge  # the volume runs from -1 to 1
    return torch.cat([matrix, shift], dim=2)


def _move(draws: Tensor, more: Tensor, options: Augmentation, edge: int) -> Tensor:
    """Return the maps [B, 2, 3] from places in the result to places in the image, x before y.

    Args:
        draws: [B, 7], from -1 to 1, as of volumes: the first angle, the size and the first two shifts count.
        more: [B, IMAGE_DRAWS], from 0 to 1, if there is a crop.
        options: What to change, and how much.
        edge: Of an image, pixels.
    """
    angle, size = draws[:, 0] * math.radians(options.rotate_deg), 1 + options.scale * draws[:, 3]
    cosine, sine = size * angle.cos(), size * angle.sin()
    matrix = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    shift = draws[:, 4:6, None] * options.translate_voxels * 2 / edge  # [B, 2, 1]; it runs from -1 to 1
    if options.crop:
        area, ratio = 1 - options.crop * more[:, 0], STRETCH ** (2 * more[:, 1] - 1)
        edges = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp_max(1)[..., None]
        places = (1 - edges) * (2 * more[:, 2:4, None] - 1)  # of the crop's centre, inside the image
        matrix, shift = edges * matrix, edges * shift + places
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
