"""A vision transformer in 2D that sees a volume slice by slice, as Med-Tuning adapts it (Shen 2024).

The slices of a batch of volumes are one batch of images, without a class token. Nothing in the network joins
the slices of a volume: methods in 3D do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from neuropeft.backbones.vit import read_shape
from neuropeft.backbones.vit_2d import ViT2D, ViT2DConfig


@dataclass(frozen=True)
class ViTSlicesConfig(ViT2DConfig):
    """Shape of a `ViTSlices`: as many slices of a volume as its image size says, z-scored already."""

    channels: int = 1
    class_token: bool = False
    features: str = "mean"


class ViTSlices(ViT2D):
    """The encoder; the feature of a volume is the mean over the tokens of all of its slices."""

    KIND: ClassVar[str] = "vit_slices"

    def __init__(self, config: ViTSlicesConfig) -> None:
        """Make a randomly initialised encoder of the shape `config`."""
        channels = config.channels
        super().__init__(replace(config, mean=[0.0] * channels, sd=[1.0] * channels))
        self.takes = self.takes._replace(dims=3)
        grid = (config.image_size, *self.gives.grid)
        self.gives = self.gives._replace(grid=grid, by_slice=True)

    def prepared(self, x: Tensor) -> Tensor:
        """Return the slices [B * S, C, S, S] of volumes [B, C, S, S, S], along the last axis."""
        self.check(x)
        return self.standardise(x.movedim(-1, 1).flatten(0, 1))

    def given(self, tokens: Tensor) -> Tensor:
        """Return the tokens [B, N, width] of volumes, of those of their slices [B * S, places, width]."""
        return tokens.reshape(-1, self.gives.places, self.gives.width)

    def below(self, x: Tensor, layers: int) -> Tensor:
        """Return the tokens [B, S, places, width] of volumes [B, C, S, S, S] after the first blocks."""
        return super().below(x, layers).unflatten(0, (-1, self.takes.size))

    def above(self, x: Tensor, layers: int) -> Tensor:
        """Return the tokens [B, N, width] that the blocks above, and the final norm, make of `x`."""
        return super().above(x.flatten(0, -3), layers)


def build(settings: Mapping[str, Any]) -> ViTSlices:
    """Return the randomly initialised encoder that `settings` (`ViTSlicesConfig`'s keys) describe."""
    return ViTSlices(read_shape(ViTSlicesConfig, settings, "backbone"))
