"""Pretrainings: encoders that are trained here, or imported."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from neuropeft.config.base import Beta, Model, Name, Seed, Share
from neuropeft.config.training import Augment


class _Trained(Model):
    """What pretrainings on a cohort share; budgets are in steps, so that a larger cohort costs no more.

    Attributes:
        needs: What a backbone must provide to be pretrained so.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    cohort: Name = Field(
        description="cohort to pretrain on; test subjects of tasks trained on it are left out"
    )
    start: Name | None = Field(
        default=None, description="another pretraining, from whose encoder this one goes on"
    )
    steps: int = Field(
        default=75_000, ge=1, description="steps; the paper's 1,000 epochs of 38,703 scans are 75,000"
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="steps over which the learning rate rises to its peak; 4 % of all if absent, as in the "
        "paper",
    )
    batch_size: int = Field(default=512, ge=1, description="scans per step, over all processes")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    validation_share: Share = Field(
        default=0.05, description="share of the subjects that only the loss curve sees"
    )
    seed: Seed = 0
    mixed_precision: bool = Field(default=True, description="bfloat16 autocast, on a GPU")
    compile: bool = Field(default=False, description="torch.compile the model")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "_Trained":
        if self.warmup >= self.steps:
            raise ValueError(f"`warmup_steps` {self.warmup} must be fewer than `steps` {self.steps}")
        return self

    @property
    def warmup(self) -> int:
        """The steps of the warm-up, given or not."""
        return self.steps * 4 // 100 if self.warmup_steps is None else self.warmup_steps


class MaskedAutoencoder(_Trained):
    """Masked-autoencoder pretraining on a cohort (He 2022; Dhinagar 2024, section 3.2)."""

    kind: Literal["mae"] = "mae"
    mask_ratio: Share = Field(default=0.75, description="share of the patches that is hidden")
    mask: Literal["all", "foreground"] = Field(
        default="all",
        description="which patches are shown or hidden: all, as in the paper, or those that hold brain in "
        "most scans; a third of the visible ones is background otherwise",
    )
    normalize_targets: bool = Field(default=True, description="standardise each target patch")
    augment: Augment = Augment(flip=True)


class Factors(_Trained):
    """Pretraining on a synthetic cohort: reading the known anatomy of its brains."""

    kind: Literal["factors"]
    augment: Augment = Augment()


class ImportedWeights(Model):
    """Weights of a ViT that was pretrained elsewhere."""

    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    weights: str = Field(
        description="a PyTorch checkpoint of MONAI's ViT or MaskedAutoEncoderViT, or an encoder.safetensors "
        "of this workflow"
    )

    @model_validator(mode="before")
    @classmethod
    def _not_trained(cls, value: object) -> object:
        others = [str(key) for key in value if key != "weights"] if isinstance(value, Mapping) else []
        if others:
            raise ValueError(f"weights that are there are not trained: remove {', '.join(others)}")
        return value


def _kind_of_pretraining(value: object) -> str:
    if isinstance(value, ImportedWeights) or (isinstance(value, Mapping) and "weights" in value):
        return "imported"
    kind = value.get("kind", "mae") if isinstance(value, Mapping) else getattr(value, "kind", "mae")
    return str(kind)


Trained = MaskedAutoencoder | Factors
Pretraining = Annotated[
    Annotated[MaskedAutoencoder, Tag("mae")]
    | Annotated[Factors, Tag("factors")]
    | Annotated[ImportedWeights, Tag("imported")],
    Discriminator(_kind_of_pretraining),
]
