"""How cells are fine-tuned, whatever their method."""

from typing import Literal

from pydantic import Field, model_validator

from neuropeft.config.base import Model
from neuropeft.config.search import Search


class Augment(Model):
    """Random changes to training scans, drawn anew for each batch on the device.

    Images are turned in their plane; the brightness of pixels runs from 0 to 1.
    """

    flip: bool = Field(default=False, description="swap left and right in half of the volumes")
    rotate_deg: float = Field(default=0.0, ge=0, description="largest rotation about each axis, degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest relative change of size")
    translate_voxels: float = Field(default=0.0, ge=0, description="largest shift along each axis, voxels")
    intensity: float = Field(
        default=0.0, ge=0, description="largest relative scaling, and shift, of the intensities"
    )
    noise: float = Field(default=0.0, ge=0, description="standard deviation of added Gaussian noise")
    contrast: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="largest bend of the curve that maps intensities: tissue contrast",
    )
    sharpness: float = Field(
        default=0.0, ge=0, description="largest weight, up or down, of the detail within 3 voxels: resolution"
    )
    bias: float = Field(
        default=0.0,
        ge=0,
        description="largest logarithm of a smooth field that intensities are multiplied with",
    )
    crop: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of images: largest share of the area that is cut away before the rest is stretched",
    )
    colour: float = Field(
        default=0.0, ge=0, le=1, description="of images in colour: largest change of saturation, and of hue"
    )


class _Schedule(Model):
    epochs: int = Field(ge=1)
    warmup_epochs: int = Field(ge=0, description="epochs over which the learning rate rises to its peak")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "_Schedule":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs} must be fewer than `epochs` {self.epochs}"
            )
        return self


class Training(_Schedule):
    """What all fine-tunes share (Dhinagar 2024, section 3.2)."""

    epochs: int = Field(
        default=50,
        ge=1,
        description="passes over all training scans; smaller fractions train for as many steps",
    )
    min_steps: int = Field(default=0, ge=0, description="steps at least, for cohorts of few scans")
    batch_size: int = Field(default=16, ge=1)
    warmup_epochs: int = Field(default=5, ge=0)
    patience: int = Field(
        default=10,
        ge=1,
        description="validations, one an epoch, without a better loss before it stops; those of the warm-up "
        "do not count",
    )
    min_validation: int = Field(
        default=50,
        ge=1,
        description="validation subjects that it takes to choose an epoch; with fewer, the loss is noise and "
        "the last weights are kept",
    )
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    pool: Literal["mean", "attentive", "concat"] = Field(
        default="mean",
        description="how tokens become features: their mean, as in the paper; averages by a few learned "
        "queries; or all of them, each reduced by one shared projection",
    )
    feature_norm: Literal["fixed", "refreshed", "layer"] = Field(
        default="fixed",
        description="how features are standardised: by the training scans' statistics before the first step; "
        "by those of each validation; or by a trained LayerNorm (MAE's fc_norm)",
    )
    head_start: Literal["random", "probe"] = Field(
        default="random",
        description="what the head starts as: random, as in the paper, or the linear probe of the frozen "
        "features",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth of the last block")
    augment: Augment = Augment()
    search: Search | None = Field(
        default=None, description="what to try before cells are trained; nothing if absent"
    )
    mixed_precision: bool = Field(default=True, description="bfloat16 autocast, on a GPU")
    compile: bool = Field(default=False, description="torch.compile the model")
