"""Backbones, and the decoder of the autoencoder that pretrains one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import Model

# Of `preprocessing.size`: below, its last maps are single values, and those of a lone scan have no variance.
SMALLEST_OF_DENSENET = 64


class Decoder(Model):
    """The light decoder of the masked autoencoder."""

    width: int = Field(default=384, ge=6, description="embedding width; the paper does not give it")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")


class ViT(Model):
    """A 3D vision transformer."""

    kind: Literal["vit"]
    width: int = Field(ge=6, description="embedding width")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")
    mlp_ratio: float = Field(
        default=4.0, gt=0, description="hidden width of the MLP over the embedding width"
    )
    patch_size: int = Field(default=16, ge=1, description="edge of a patch, in voxels")
    decoder: Decoder = Field(description="decoder of the masked autoencoder that pretrains this backbone")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ViT":
        for part, width, heads in (
            ("", self.width, self.heads),
            ("decoder.", self.decoder.width, self.decoder.heads),
        ):
            if width % heads:
                raise ValueError(f"`{part}width` {width} is not divisible by `{part}heads` {heads}")
            if width % 6:
                raise ValueError(
                    f"`{part}width` {width} is not divisible by 6, which 3D sin-cos positions need"
                )
        return self


class DenseNet121(Model):
    """MONAI's 3D DenseNet121, the paper's reference CNN."""

    kind: Literal["densenet121"]


Backbone = Annotated[ViT | DenseNet121, Field(discriminator="kind")]
