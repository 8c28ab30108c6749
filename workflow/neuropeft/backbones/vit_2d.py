"""A vision transformer in 2D, as ImageNet, MAE and DINOv2 weights want it.

The architecture is that of Dosovitskiy 2021 as timm, MAE (He 2022) and DINOv2 (Oquab 2024) build it: a class
token, positions that are learned or fixed, norms with an epsilon of 1e-6, and LayerScale in DINOv2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neuropeft.backbones.images import Standardise
from neuropeft.backbones.vit import ViT, ViTConfig, read_shape
from neuropeft.errors import UserError

EPS = 1e-6  # that LayerNorms add to variances
STD = 0.02  # of the class token and of learned positions at the start


@dataclass(frozen=True)
class ViT2DConfig(ViTConfig):
    """Shape of a `ViT2D`, in pixels where `ViTConfig` says voxels."""

    DIMS: ClassVar[int] = 2
    channels: int = 3  # of an image, 1 or 3
    class_token: bool = True  # whether a token of no place goes before those of the patches
    # `class` gives the class token alone, `mean` the tokens of the patches, to be averaged
    features: str = "class"
    positions: str = "learned"  # `learned`, or the fixed sine and cosine of MAE, `sincos`
    layer_scale: bool = False  # whether blocks have a LayerScale, as DINOv2's do
    mean: Sequence[float] | None = None  # as in `Standardise`
    sd: Sequence[float] | None = None  # as in `Standardise`


class ViT2D(ViT):
    """The encoder in 2D; the feature of an image is its class token or the mean over the others."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {"embedding": nn.Conv2d, **ViT.SITES}
    KIND: ClassVar[str] = "vit_2d"
    config: ViT2DConfig

    def __init__(self, config: ViT2DConfig) -> None:
        """Make a randomly initialised encoder of the shape `config`."""
        super().__init__(config, config.channels, EPS, config.layer_scale)
        by_class = config.features == "class"
        if by_class and not config.class_token:
            raise UserError("features are those of the class token, but there is none; give features: mean")
        self.gives = self.gives._replace(extra=int(config.class_token), gives_extra=by_class)
        self.standardise = Standardise(config.channels, config.mean, config.sd)
        if config.class_token:
            # Its position, which timm and DINOv2 add to it, is in it.
            self.class_token = nn.Parameter(torch.empty(config.width))
            nn.init.normal_(self.class_token, std=STD)
        if config.positions == "learned":
            del self.positions
            self.positions = nn.Parameter(torch.empty(config.tokens, config.width))
            nn.init.trunc_normal_(self.positions, std=STD)

    def with_extra(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, n, width] with the class token, if there is one, before them."""
        if not self.gives.extra:
            return tokens
        return torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1)

    def given(self, tokens: Tensor) -> Tensor:
        """Return the class token [B, 1, width] or the others [B, places, width], as the settings say."""
        extra = self.gives.extra
        return tokens[:, :extra] if self.gives.gives_extra else tokens[:, extra:]

    def prepared(self, x: Tensor) -> Tensor:
        """Return images [B, C, H, W], standardised; `UserError` if they are of another size."""
        return self.standardise(super().prepared(x))

    def restored(self, x: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of which `prepared` makes `x`."""
        return self.standardise.inverse(x)

    def architecture(self) -> dict[str, Any]:
        """Return the shape of the network; which of its tokens are given is no matter of the weights."""
        shape = super().architecture()
        del shape["features"]
        return shape | self.standardise.values


def build(settings: Mapping[str, Any]) -> ViT2D:
    """Return the randomly initialised encoder that `settings` (`ViT2DConfig`'s keys) describe."""
    return ViT2D(read_shape(ViT2DConfig, settings, "backbone"))
