"""A decoder in 2D: maps of a vision transformer's layers -> logits of every pixel.

It is the UPerNet (Xiao 2018) that Med-Tuning (Shen 2024) puts on a ViT, whose maps all have one size: the
numbers of channels and of parameters are those of the authors' code. One thing differs, which no parameter
counts: group norms stand where they have batch norms. What a scan is given then never depends on its
neighbours, and a lone image can be trained on: a map that is pooled to one place has no variance over it.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 256  # of the pyramid's maps
BINS = (1, 2, 4, 6)  # edges that the last map is pooled to
DROPOUT = 0.1  # of whole channels of the last map
CHANNELS_PER_GROUP = 16  # of a norm (Wu & He 2018, table 3)


class UPerNet(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid over all, and a convolution to classes."""

    def __init__(self, width: int, outputs: int, levels: int = 4) -> None:
        """Make a decoder.

        Args:
            width: Channels of each map.
            outputs: Logits of a pixel.
            levels: Maps, from the lowest layer to the last one.
        """
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(width, CHANNELS, 1), _norm(CHANNELS), nn.GELU())
        self.pooled = PyramidPooling(width)
        self.lateral = nn.ModuleList(nn.Conv2d(width, CHANNELS, 1) for _ in range(levels - 1))
        # One for all levels, as in the authors' code.
        self.smooth = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.fuse = _convolution(levels * CHANNELS, CHANNELS, 3)
        self.classify = nn.Conv2d(CHANNELS, outputs, 3, padding=1)

    def forward(self, scans: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Decode maps, the lowest layer's first; of volumes, slice by slice.

        Args:
            scans: Images [B, C, H, W], or volumes [B, C, H, W, S], of which the shape alone counts.
            maps: [B, width, h, w] each, or of volumes [B, width, S, h, w].

        Returns:
            Logits [B, outputs, H, W] or [B, outputs, H, W, S].
        """
        if scans.ndim == 4:
            return self._decode(maps, scans.shape[2:])
        slices = [level.transpose(1, 2).flatten(0, 1) for level in maps]  # [B * S, width, h, w]
        return self._decode(slices, scans.shape[2:4]).unflatten(0, (len(scans), -1)).movedim(1, -1)

    def _decode(self, maps: Sequence[Tensor], size: torch.Size) -> Tensor:
        levels, ways = (*maps[:-1], self.pooled(maps[-1])), (self.neck, *self.lateral)
        laterals = [way(level) for way, level in zip(ways, levels, strict=True)]
        # Each map takes in the one above as that is, not what became of it: as in the authors' code.
        summed = [self.smooth(low + high) for low, high in itertools.pairwise(laterals)]
        logits = self.classify(self.fuse(torch.cat([*summed, laterals[-1]], dim=1)))
        return F.interpolate(logits, size=size, mode="bilinear")


class PyramidPooling(nn.Module):
    """What a map shows at coarser scales, beside the map itself (Zhao 2017, PSPNet)."""

    def __init__(self, width: int) -> None:
        """Make the branches of maps of `width` channels."""
        super().__init__()
        part = width // len(BINS)
        self.branches = nn.ModuleList(_convolution(width, part, 1) for _ in BINS)
        self.mix = nn.Sequential(_convolution(width + part * len(BINS), width, 3), nn.Dropout2d(DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, h, w] to the same shape."""
        scales = [
            F.interpolate(
                branch(F.adaptive_avg_pool2d(x, edge)), size=x.shape[2:], mode="bilinear", align_corners=True
            )
            for branch, edge in zip(self.branches, BINS, strict=True)
        ]
        return self.mix(torch.cat([x, *scales], dim=1))


def _convolution(inputs: int, outputs: int, edge: int) -> nn.Sequential:
    """Return a convolution that keeps the size of maps, a norm and a ReLU."""
    convolution = nn.Conv2d(inputs, outputs, edge, padding=edge // 2, bias=False)
    return nn.Sequential(convolution, _norm(outputs), nn.ReLU())


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(1, channels // CHANNELS_PER_GROUP)), channels)
