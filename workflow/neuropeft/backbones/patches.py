"""Scans as patches, and the positions of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_TEMPERATURE = 10000.0
RESIZED = {2: "bicubic", 3: "trilinear"}


def sincos_positions(grid: int, width: int, dims: int = 3) -> Tensor:
    """Return fixed sin-cos position embeddings [grid^dims, width] (MAE, section A.1; SelfMedMAE's in 3D).

    A token's embedding holds sine and cosine of its second, first and third grid index, in that order, at
    width/6 wavelengths from 2 pi to 10000 * 2 pi; in 2D, of the second and the first at width/4. The order is
    that of MAE, SelfMedMAE and MONAI, so that their weights fit. What width/6 leaves over, such as 4 of
    ViT-L's 1,024 channels, stays zero.
    """
    index, bands = torch.arange(grid, dtype=torch.float64), width // (2 * dims)
    first, second, *rest = torch.meshgrid(*[index] * dims, indexing="ij")
    wavelengths = torch.arange(bands, dtype=torch.float64) / bands
    frequency = POSITION_TEMPERATURE**-wavelengths
    angles = [axis.flatten()[:, None] * frequency for axis in (second, first, *rest)]  # each [N, bands]
    positions = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
    return F.pad(positions, (0, width % (2 * dims)))


def resized_positions(positions: Tensor, grid: int, dims: int) -> Tensor:
    """Return positions [g^dims, width] of a grid for another one, [grid^dims, width].

    In 2D they are interpolated as by Hugging Face's DINOv2, bicubic, and in 3D trilinear; corners are not
    aligned, and there is no antialiasing.
    """
    edge = round(len(positions) ** (1 / dims))
    if edge == grid or edge**dims != len(positions):
        return positions
    image = positions.float().view(1, *[edge] * dims, -1).movedim(-1, 1)  # [1, width, g, g, ...]
    resized = F.interpolate(image, (grid,) * dims, mode=RESIZED[dims], align_corners=False)
    return resized.flatten(2).squeeze(0).T.contiguous()


def patch_view(x: Tensor, patch: int) -> Tensor:
    """Return scans [B, C, *S] seen as patches [B, *grid, C, *p], without copying a voxel."""
    dims, grid = x.ndim - 2, x.shape[-1] // patch
    view = x.view(*x.shape[:2], *[grid, patch] * dims)  # [B, C, g, p, g, p, ...]
    axes = range(2, view.ndim)
    return view.permute(0, *axes[::2], 1, *axes[1::2])


def patchify(x: Tensor, patch: int) -> Tensor:
    """Return the patches [B, N, C * patch^dims] of scans [B, C, *S]; the last axis varies fastest."""
    return patch_view(x, patch).reshape(x.shape[0], -1, x.shape[1] * patch ** (x.ndim - 2))


def unpatchify(patches: Tensor, patch: int, dims: int = 3) -> Tensor:
    """Return the scans [B, C, *S] that `patchify` takes apart into `patches` [B, N, C * patch^dims]."""
    batch, tokens, values = patches.shape
    grid, channels = round(tokens ** (1 / dims)), values // patch**dims
    view = patches.view(batch, *[grid] * dims, channels, *[patch] * dims)  # [B, g, ..., C, p, ...]
    pairs = [axis for place in range(1, dims + 1) for axis in (place, place + 1 + dims)]
    return view.permute(0, dims + 1, *pairs).reshape(batch, channels, *[grid * patch] * dims)
