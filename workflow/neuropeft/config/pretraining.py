"""Pretrainings: encoders that are trained here, or imported."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from neuropeft.config.backbones import Backbone, Transformer
from neuropeft.config.base import Beta, Model, Name, Seed, Share
from neuropeft.config.cohorts import Cohort
from neuropeft.config.training import Augment


class Trained(Model):
    """What pretrainings on a cohort share; budgets are in steps, so that a larger cohort costs no more."""

    # What a backbone must provide to be pretrained so
    needs: ClassVar[frozenset[str]] = frozenset({"tokens of whole scans"})
    loss_label: ClassVar[str]  # what its loss is, for axes
    reconstructs: ClassVar[bool] = False  # whether it leaves reconstructions of scans, to be drawn
    kind: str
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
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Trained":
        if self.warmup >= self.steps:
            raise ValueError(f"`warmup_steps` {self.warmup} must be fewer than `steps` {self.steps}")
        return self

    @property
    def warmup(self) -> int:
        """The steps of the warm-up, given or not."""
        return self.steps * 4 // 100 if self.warmup_steps is None else self.warmup_steps

    def spec(self, backbone: Backbone) -> dict[str, Any]:
        """Return what defines a pretraining of `backbone`, beside the backbone and the scans."""
        settings = self.model_dump(mode="json", exclude={"cohort", "start"})
        return {**settings, "warmup_steps": self.warmup}

    def check_backbone(self, key: str, named: str, backbone: Backbone, size: int) -> None:
        """Raise `ValueError` if a backbone that provides its needs is of a shape that it cannot pretrain.

        `key` and `named` are what the error calls the pretraining and the backbone; `size` is in voxels.
        """

    def check_cohort(self, key: str, name: str, cohort: Cohort) -> None:
        """Raise `ValueError`, which names the pretraining by `key`, unless it can be trained on a cohort."""


class MaskedAutoencoder(Trained):
    """Masked-autoencoder pretraining on a cohort (He 2022; Dhinagar 2024, section 3.2)."""

    loss_label: ClassVar[str] = "loss on hidden patches (MSE)"
    reconstructs: ClassVar[bool] = True
    kind: Literal["mae"] = "mae"
    mask_ratio: Share = Field(default=0.75, description="share of the patches that is hidden")
    mask: Literal["all", "foreground"] = Field(
        default="all",
        description="which patches are shown or hidden: all, as in the paper, or those that hold brain in "
        "most scans; a third of the visible ones is background otherwise",
    )
    normalize_targets: bool = Field(default=True, description="standardise each target patch")
    augment: Augment = Augment(flip=True)

    def spec(self, backbone: Backbone) -> dict[str, Any]:
        """The decoder belongs to the backbone's settings."""
        assert isinstance(backbone, Transformer), "no other backbone gives tokens"
        return {**super().spec(backbone), "decoder": backbone.decoder.model_dump(mode="json")}

    def check_backbone(self, key: str, named: str, backbone: Backbone, size: int) -> None:
        """Some patches must stay visible."""
        if not isinstance(backbone, Transformer):
            return
        patches = backbone.patches(size)
        if patches * (1 - self.mask_ratio) < 1:
            raise ValueError(
                f"`{key}.mask_ratio` {self.mask_ratio} hides all of the {patches} patches of `{named}`: "
                "give a lower one or a smaller `patch_size`"
            )


class Factors(Trained):
    """Pretraining on a synthetic cohort: reading the known anatomy of its brains."""

    needs: ClassVar[frozenset[str]] = frozenset({"tokens of whole scans", "tokens in 3D"})
    loss_label: ClassVar[str] = "loss of maps and factors (MSE)"
    kind: Literal["factors"]

    def check_cohort(self, key: str, name: str, cohort: Cohort) -> None:
        """Its anatomy must be known."""
        if cohort.synthetic is None:
            raise ValueError(
                f"`{key}.cohort` is {name!r}, whose anatomy nobody knows: kind factors needs a synthetic "
                "cohort"
            )


class ImportedWeights(Model):
    """Weights that were pretrained elsewhere."""

    needs: ClassVar[frozenset[str]] = frozenset({"an importer"})
    kind: ClassVar[str] = "imported"
    weights: str = Field(
        description="an encoder.safetensors of this workflow, or a checkpoint, PyTorch's or safetensors: of "
        "MONAI's ViT or MaskedAutoEncoderViT for a `vit`; of timm, MAE, MRM, DINOv2 or Hugging Face's ViT "
        "for a `vit_2d` or a `vit_slices`; of torchvision for a `resnet50_2d`; the U-Net's of its own folder "
        "for a `diffusion`"
    )
    licence: str = Field(default="", description="licence of the weights, for the report")
    citation: str = Field(default="", description="what to cite for them, for the report")

    @model_validator(mode="before")
    @classmethod
    def _not_trained(cls, value: object) -> object:
        others = (
            [str(key) for key in value if key not in cls.model_fields] if isinstance(value, Mapping) else []
        )
        if others:
            raise ValueError(f"weights that are there are not trained: remove {', '.join(others)}")
        return value


class KeptEncoder(Model):
    """The encoder that another pretraining had part of the way: how much pretraining is enough?"""

    needs: ClassVar[frozenset[str]] = frozenset({"tokens of whole scans"})
    kind: ClassVar[str] = "kept"
    of: Name = Field(description="the pretraining")
    percent: Literal[10, 25, 50] = Field(description="percent of its steps; its learning rate is not decayed")


def _kind_of_pretraining(value: object) -> str:
    if isinstance(value, ImportedWeights) or (isinstance(value, Mapping) and "weights" in value):
        return "imported"
    if isinstance(value, KeptEncoder) or (isinstance(value, Mapping) and "of" in value):
        return "kept"
    kind = value.get("kind", "mae") if isinstance(value, Mapping) else getattr(value, "kind", "mae")
    return str(kind)


Pretraining = Annotated[
    Annotated[MaskedAutoencoder, Tag("mae")]
    | Annotated[Factors, Tag("factors")]
    | Annotated[ImportedWeights, Tag("imported")]
    | Annotated[KeptEncoder, Tag("kept")],
    Discriminator(_kind_of_pretraining),
]
