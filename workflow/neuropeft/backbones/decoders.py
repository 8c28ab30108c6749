"""Decoders: from the feature maps of a backbone to logits of every voxel, and the network that has one.

On a vision transformer in 3D it is a light UNETR (Hatamizadeh et al. 2022): the tokens of several depths are
spread to finer grids, by one transposed convolution each, and the scan itself is the finest map. On a CNN it
is the expanding path of a U-Net (Ronneberger et al. 2015), on a transformer in 2D a UPerNet. Norms are those
of each scan alone, so that its outputs never depend on its neighbours.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import MapSpec
from neuropeft.backbones.build import build_backbone
from neuropeft.backbones.decoders_2d import UPerNet
from neuropeft.backbones.heads import Predictor

FINEST, MOST = 8, 64  # channels at the resolution of the scan; they double with each halving, up to the most
SPREAD: Mapping[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
CONVOLUTION: Mapping[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class UNetDecoder(nn.Module):
    """Feature maps and the scan itself -> logits of every voxel."""

    def __init__(self, gives: Sequence[MapSpec], channels: int, dims: int, outputs: int) -> None:
        """Make a decoder; imports MONAI, which takes seconds.

        Args:
            gives: The maps that it gets, from the first layers of a backbone to the last.
            channels: Of a scan.
            dims: Axes of a scan.
            outputs: Logits of a voxel.
        """
        super().__init__()
        from monai.networks.blocks.convolutions import Convolution
        from monai.networks.blocks.dynunet_block import UnetBasicBlock

        def block(inputs: int, width: int) -> nn.Module:
            return UnetBasicBlock(dims, inputs, width, kernel_size=3, stride=1, norm_name="instance")

        wanted = _levels(gives)
        self.used = list(wanted)
        widths = [min(MOST, FINEST * 2**level) for level in wanted.values()] + [FINEST]
        self.image = block(channels, FINEST)
        self.spread = nn.ModuleList()
        for (place, level), width in zip(wanted.items(), widths, strict=False):
            factor = max(1, round(gives[place].stride / 2**level))
            self.spread.append(SPREAD[dims](gives[place].width, width, factor, factor))
        # Before they are interpolated, where there are few voxels.
        self.narrow, self.blocks = nn.ModuleList(), nn.ModuleList()
        for below, width in itertools.pairwise(widths):
            self.narrow.append(Convolution(dims, below, width, kernel_size=1, conv_only=True))
            self.blocks.append(block(2 * width, width))
        self.classify = CONVOLUTION[dims](FINEST, outputs, 1)

    def forward(self, scans: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B, outputs, *S] of scans [B, C, *S] whose maps [B, width, *grid] a backbone gave."""
        x, *finer = [spread(maps[place]) for place, spread in zip(self.used, self.spread, strict=True)]
        skips = (*finer, self.image(scans))
        for narrow, block, skip in zip(self.narrow, self.blocks, skips, strict=True):
            x = F.interpolate(narrow(x), skip.shape[2:], mode=LINEAR[skip.ndim - 2])
            x = block(torch.cat([x, skip], dim=1))
        return self.classify(x)


def _levels(gives: Sequence[MapSpec]) -> dict[int, int]:
    """Return which maps are used, the last one first, and how often the resolution of each is halved.

    Maps on one grid, as of a transformer, are spread to a resolution each, deep ones to coarse resolutions.
    """
    halvings = [math.ceil(math.log2(one.stride)) for one in gives]
    if len(set(halvings)) == len(gives):  # a pyramid already
        return {place: halvings[place] for place in reversed(range(len(gives)))}
    number = min(halvings[-1], len(gives))
    places = np.linspace(len(gives) - 1, 0, number).round().astype(int)
    return {int(place): halvings[-1] - step for step, place in enumerate(places)}


class DensePredictor(Predictor):
    """`backbone` (scans -> feature maps) and `head`, a decoder (scans and maps -> logits of every voxel)."""

    by_tokens = False

    def start_at(self, logits: Tensor) -> None:
        """Have the untrained head tell these logits [outputs] of every voxel, apart from what it sees."""
        with torch.no_grad():
            self.head.classify.bias.copy_(logits)  # type: ignore[operator, union-attr]

    def raw(self, x: Tensor) -> Tensor:
        """Return the logits [B, outputs, *S] of scans [B, C, *S]."""
        return self.head(x, self.backbone.maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, outputs, *S] of scans [B, C, *S]; autocast is for the decoder, too."""
        return self.raw(x)


def build_predictor(backbone: Mapping[str, Any], outputs: int, decoder: str | None = None) -> DensePredictor:
    """Return a randomly initialised network.

    Args:
        backbone: As for `build.build_backbone`.
        outputs: Logits of a voxel.
        decoder: `unet`, or `upernet` for a transformer in 2D, which is what such a one has by default.
    """
    network = build_backbone(backbone)
    takes, maps = network.takes, network.gives_maps
    flat = takes.dims == 2 or network.gives.by_slice
    usual = "upernet" if flat and len({one.stride for one in maps}) == 1 else "unet"
    if (decoder or usual) == "upernet":
        return DensePredictor(network, UPerNet(maps[0].width, outputs, len(maps)))
    return DensePredictor(network, UNetDecoder(maps, takes.channels, takes.dims, outputs))
