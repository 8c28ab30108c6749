"""Adapters that see the tokens as an image or a volume: between down and up they convolve over the grid."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone, quarters
from neuropeft.methods.adapters import EVERY, Adapters, Init, New, Scaled, chain, kaiming, xavier, zero
from neuropeft.methods.base import Inserted, Method


def identity(weight: Tensor, generator: torch.Generator) -> None:
    """Fill a convolution's weight so that it passes on each channel as it is."""
    nn.init.dirac_(weight)


def to_volume(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return tokens as a volume, or in 2D an image, [B, m, *grid].

    The tokens are [B, N, m], or [B * slices, N / slices, m] where layers see each slice by itself.
    """
    whole = tokens.reshape(-1, math.prod(grid), tokens.shape[-1])
    return whole.transpose(1, 2).unflatten(2, grid)


def to_tokens(volume: Tensor, shape: torch.Size) -> Tensor:
    """Return a volume [B, m, *grid] as tokens, of the shape of those that it was made of."""
    return volume.flatten(2).transpose(1, 2).reshape(shape)


class OnGrid(nn.Module):
    """A convolution of tokens; those of no place are grids of one place, as in Convpass."""

    def __init__(self, convolution: nn.Module, grid: tuple[int, ...], extra: int) -> None:
        """Apply `convolution` over the places `grid` of tokens, before which are `extra` of no place."""
        super().__init__()
        self.convolution, self.grid, self.extra = convolution, grid, extra

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, extra + N, m] to tokens of the same shape."""
        extra, placed = x[:, : self.extra], x[:, self.extra :]
        y = to_tokens(self.convolution(to_volume(placed, self.grid)), placed.shape)
        if not self.extra:
            return y
        alone = to_volume(extra, (1,) * len(self.grid))  # [B * extra, m, 1, ...]
        return torch.cat([to_tokens(self.convolution(alone), extra.shape), y], dim=1)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return x * torch.sigmoid(1.702 * x)


def depthwise(new: New, kernel: list[int], init: Init = kaiming, bias: bool = True) -> nn.Module:
    """Return a convolution of every channel of the bottleneck by itself."""
    return new.conv(new.inside, new.inside, kernel, init, groups=new.inside, bias=bias)


def pro_tuning(new: New) -> nn.Module:
    """Return Pro-tuning's: three convolutions, of which the last alone has a bias, and starts at zero."""
    edges = [new.settings["kernel"]] * len(new.seen)
    middle = OnGrid(depthwise(new, edges, bias=False), new.seen, new.extra)
    return chain(down=new.down(bias=False), middle=middle, up=new.up())


def st_adapter(new: New) -> nn.Module:
    """Return ST-Adapter's: no activation, and the convolution starts at zero."""
    middle = OnGrid(depthwise(new, new.settings["kernel"], zero), new.grid, new.extra)
    return chain(down=new.down(), middle=middle, up=new.up(kaiming))


def convpass(new: New) -> nn.Module:
    """Return Convpass's: a full convolution, the identity at the start, between two activations."""
    full = new.conv(new.inside, new.inside, [3] * len(new.seen), identity)
    middle = OnGrid(full, new.seen, new.extra)
    return chain(
        down=new.down(xavier),
        activation=QuickGELU(),
        middle=middle,
        again=QuickGELU(),
        dropout=nn.Dropout(new.settings["dropout"]),
        up=new.up(),
        scale=Scaled(new.settings["scale"]),
    )


class Volumetric(nn.Module):
    """Med-Tuning's features of a volume: two scales and its spectrum, summed and mixed (Shen 2024)."""

    def __init__(self, new: New) -> None:
        """Make the branches for volumes of `new.inside` channels."""
        super().__init__()
        self.fine, self.coarse = self._branch(new, 3), self._branch(new, 5)
        self.spectrum_weight = nn.Parameter(torch.ones_like(new.empty(new.grid[0])))
        self.spectrum_bias = nn.Parameter(torch.ones_like(new.empty(new.grid[0])))
        self.mix = new.conv(new.inside, new.inside, [1, 1, 1])

    def forward(self, volume: Tensor) -> Tensor:
        """Map volumes [B, m, T, H, W] to volumes of the same shape."""
        weight, bias = self.spectrum_weight[:, None, None], self.spectrum_bias[:, None, None]
        # In float32 under autocast too: there is no transform of bfloat16.
        spectrum = torch.fft.fftn(volume.float(), dim=(2, 3, 4)) * weight + bias
        waves = torch.fft.ifftn(spectrum, dim=(2, 3, 4)).abs()
        return self.mix(self.fine(volume) + self.coarse(volume) + waves)

    @staticmethod
    def _branch(new: New, edge: int) -> nn.Module:
        """Return a convolution within slices, one across them, a batch norm and a ReLU."""
        norm = nn.BatchNorm3d(new.inside, device=new.empty(0).device)
        slices, across = depthwise(new, [1, edge, edge]), depthwise(new, [edge, 1, 1])
        return chain(slices=slices, across=across, norm=norm, activation=nn.ReLU())


class MedAdapter(nn.Module):
    """An adapter of Med-Tuning; those at the ends of stages take in the features of the stage before."""

    def __init__(self, new: New, is_end: bool) -> None:
        """Make an adapter, of a block at the end of a stage or not."""
        super().__init__()
        self.grid, self.is_end, inside = new.grid, is_end, new.inside
        self.down, self.features, self.up = new.down(), Volumetric(new), new.up(kaiming)
        if is_end:
            self.stage = new.conv(inside, inside, [1, 1, 1])
            self.fuse = new.conv(2 * inside, inside, [1, 1, 1])

    def forward(self, tokens: Tensor, stage: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adapt tokens.

        Args:
            tokens: As for `to_volume`.
            stage: Features of the last stage [B, m, *grid], if this is not the network's first adapter.

        Returns:
            Adapted tokens of the same shape, and the features of the last stage for the next adapter.
        """
        bottleneck = F.gelu(self.down(tokens))
        low = to_volume(bottleneck, self.grid)
        features = self.features(low)
        # The authors' code has zeros before the first stage: weights that see nothing else would never train.
        stage = features if stage is None else stage
        if self.is_end:
            stage = features = self.fuse(torch.cat([features, self.stage(stage)], dim=1))
        return tokens + F.gelu(self.up(to_tokens(low + features, bottleneck.shape))), stage


class MedTuned(Inserted):
    """All blocks of a network, an adapter after each."""

    inner: nn.ModuleList

    def __init__(self, blocks: list[nn.Module], adapters: list[MedAdapter]) -> None:
        """Take as many adapters as blocks."""
        super().__init__()
        self.inner, self.adapters = nn.ModuleList(blocks), nn.ModuleList(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, N, d] to tokens [B, N, d]."""
        stage = None
        for block, adapter in zip(self.inner, self.adapters, strict=True):
            tokens, stage = adapter(block(tokens), stage)
        return tokens


def check_volume(backbone: Backbone) -> None:
    """Raise `UserError` unless the tokens of a backbone lie in three axes."""
    if len(backbone.gives.grid) != 3:
        raise backbone.lacks("tokens in 3D")


class InVolume(Adapters):
    """Adapters of what has three axes."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the adapters in."""
        check_volume(backbone)
        super().adapt(backbone, settings, generator)


class MedTuning(Method):
    """Put a volumetric adapter after every block (Shen 2024): L (2dm + m^2 + 52m + d + 2T) + 4 (3m^2 + 2m).

    m is d / 6, and T the grid's first edge. The authors' 2,845,696 are of 128 slices.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the adapters in; stages end where each quarter of the depth does."""
        check_volume(backbone)
        new, sites = New(backbone, settings, generator), backbone.sites("block")
        blocks: Any = sites[0].owner
        ends = quarters(len(sites))
        adapters = [MedAdapter(new, place in ends) for place in range(len(sites))]
        del blocks[1:]  # one module in the place of all, as adapters pass on more than tokens
        blocks[0] = MedTuned([site.module for site in sites], adapters)


METHODS = {
    # After the block, which counts as a stage (Nie 2023).
    "pro_tuning": Adapters(("block",), "after", pro_tuning),
    # Before the block, so before its attention (Pan 2022, section 3.3).
    "st_adapter": InVolume(("block",), "before", st_adapter),
    # Beside attention and MLP, after their norms (Jie & Deng 2022).
    "convpass": Adapters(EVERY, "beside", convpass),
    "med_tuning": MedTuning(),
}
