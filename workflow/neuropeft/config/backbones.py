"""Backbones, and the decoder of the autoencoder that pretrains one."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from neuropeft.config.base import Kind, Model


class Decoder(Model):
    """The light decoder of the masked autoencoder."""

    width: int = Field(default=384, ge=6, description="embedding width; the paper does not give it")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")


class _Backbone(Kind):
    """What all backbones share.

    Attributes:
        provides: What methods and pretrainings may need of it: the kinds of sites that methods attach to,
            `tokens`, of which there may be any number, `tokens of whole scans`, which attend to each other,
            `tokens in 3D`, `stages` of layers, of which the last one is known, `bias`, parameters of that
            name, `an importer` of weights from elsewhere, and `denoiser`, what draws images.
        needs: What a cohort's kind of input must provide.
        decoders: Which decoders of `config.tasks` its feature maps are for.
    """

    provides: ClassVar[frozenset[str]]
    decoders: ClassVar[frozenset[str]] = frozenset({"unet"})
    needs: ClassVar[frozenset[str]] = frozenset({"3D", "one channel"})

    @classmethod
    def label_of(cls, name: str) -> str:
        """Return what tables call a backbone of a name: what follows its kind is its size, `vit_b` ViT-B."""
        _, is_sized, size = name.partition(f"{cls.kind_name()}_")
        return f"{cls.label}-{size.upper()}" if is_sized and size else super().label_of(name)

    def check_size(self, key: str, size: int) -> None:
        """Raise `ValueError`, which names the backbone by `key`, unless it takes scans of edge `size`."""

    def forward_flop(self, size: int) -> float:
        """Return about how many operations one scan of edge `size` takes through the network."""
        raise NotImplementedError


class Transformer(_Backbone):
    """What vision transformers share."""

    dims: ClassVar[int]  # axes of a scan
    width: int = Field(ge=6, description="embedding width")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")
    mlp_ratio: float = Field(
        default=4.0, gt=0, description="hidden width of the MLP over the embedding width"
    )
    patch_size: int = Field(default=16, ge=1, description="edge of a patch, in voxels")
    decoder: Decoder = Field(description="decoder of the masked autoencoder that pretrains this backbone")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        for part, width, heads in (
            ("", self.width, self.heads),
            ("decoder.", self.decoder.width, self.decoder.heads),
        ):
            if width % heads:
                raise ValueError(f"`{part}width` {width} is not divisible by `{part}heads` {heads}")
        return self

    def patches(self, size: int) -> int:
        """Return the patches of a scan of edge `size`."""
        return (size // self.patch_size) ** self.dims

    def check_size(self, key: str, size: int) -> None:
        """Patches must fill the scan."""
        if size % self.patch_size:
            raise ValueError(
                f"`{key}.patch_size` {self.patch_size} does not divide `preprocessing.size` {size}: change "
                "one of them"
            )

    def forward_flop(self, size: int) -> float:
        """Two operations per weight and token, and attention."""
        tokens = self.patches(size)
        block = (4 + 2 * self.mlp_ratio) * self.width**2
        weights = self.depth * block + self.width * self.patch_size**self.dims
        return 2 * tokens * weights + 4 * self.depth * self.width * tokens**2


TRANSFORMER = frozenset(
    {"tokens", "embedding", "block", "attention", "mlp", "linear", "layernorm", "bias", "an importer"}
)
OF_WHOLE_SCANS = TRANSFORMER | {"tokens of whole scans"}


class ViT(Transformer):
    """A 3D vision transformer."""

    label: ClassVar[str] = "ViT"
    provides: ClassVar[frozenset[str]] = OF_WHOLE_SCANS | {"tokens in 3D"}
    dims: ClassVar[int] = 3
    kind: Literal["vit"]


class _OfImages(_Backbone):
    """What backbones of 2D images share."""

    channels: Literal[1, 3] = Field(default=3, description="channels of an image")
    mean: list[float] | None = Field(
        default=None,
        description="what is subtracted from pixels, which run from 0 to 1, by channel; ImageNet's if absent",
    )
    sd: list[Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="what the rest is divided by, by channel; ImageNet's if absent"
    )

    @model_validator(mode="after")
    def _a_number_for_each_channel(self) -> Self:
        for name in ("mean", "sd"):
            given = getattr(self, name)
            if given is not None and len(given) != self.channels:
                raise ValueError(
                    f"`{name}` has {len(given)} numbers: give one for each of {self.channels} channels"
                )
        return self

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Images of as many channels."""
        return frozenset({"2D", "one channel" if self.channels == 1 else f"{self.channels} channels"})


class ViT2D(_OfImages, Transformer):
    """A 2D vision transformer, as weights of ImageNet, MAE, MRM and DINOv2 want it."""

    label: ClassVar[str] = "2D ViT"
    provides: ClassVar[frozenset[str]] = OF_WHOLE_SCANS
    decoders: ClassVar[frozenset[str]] = frozenset({"unet", "upernet"})
    dims: ClassVar[int] = 2
    kind: Literal["vit_2d"]
    class_token: bool = Field(default=True, description="whether a class token goes before those of patches")
    features: Literal["class", "mean"] = Field(
        default="class",
        description="what stands for an image: the class token, as of DINOv2, or the tokens of all patches, "
        "which `training.pool` pools, as of fine-tuned MAE",
    )
    positions: Literal["learned", "sincos"] = Field(
        default="learned", description="positions: learned, or fixed as MAE's"
    )
    layer_scale: bool = Field(default=False, description="a learned scale of each branch, as DINOv2 has")

    @model_validator(mode="after")
    def _the_class_token_is_there(self) -> Self:
        if self.features == "class" and not self.class_token:
            raise ValueError("`features` is class, but there is no `class_token`: give `features: mean`")
        return self


class ViTSlices(Transformer):
    """A 2D vision transformer over the slices of volumes, for weights of images (Shen 2024)."""

    label: ClassVar[str] = "2D ViT of slices"
    provides: ClassVar[frozenset[str]] = TRANSFORMER | {"tokens in 3D"}
    decoders: ClassVar[frozenset[str]] = frozenset({"upernet"})
    dims: ClassVar[int] = 2
    kind: Literal["vit_slices"]
    channels: int = Field(default=1, ge=1, description="channels of a volume")
    positions: Literal["learned", "sincos"] = Field(
        default="learned", description="positions in a slice: learned, or fixed as MAE's"
    )

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Volumes of as many channels."""
        return frozenset({"3D", "one channel" if self.channels == 1 else f"{self.channels} channels"})

    def forward_flop(self, size: int) -> float:
        """As many times what a slice takes."""
        return size * super().forward_flop(size)


class DenseNet121(_Backbone):
    """MONAI's 3D DenseNet121, the paper's reference CNN."""

    label: ClassVar[str] = "DenseNet121"
    provides: ClassVar[frozenset[str]] = frozenset({"conv", "batchnorm", "stages", "bias"})
    kind: Literal["densenet121"]

    def check_size(self, key: str, size: int) -> None:
        """Below 64, its last maps are single values, and those of a lone scan have no variance."""
        if size < 64:
            raise ValueError(
                f"`{key}` halves a volume five times and needs a `preprocessing.size` of at least 64, not "
                f"{size}"
            )

    def forward_flop(self, size: int) -> float:
        """Ten times what its convolutions take: they are slow. An upper estimate from 80^3 voxels."""
        return 200e9 * (size / 80) ** 3


class ResNet50(_Backbone):
    """MONAI's 3D ResNet-50 (He 2016)."""

    label: ClassVar[str] = "ResNet-50"
    provides: ClassVar[frozenset[str]] = frozenset({"conv", "batchnorm", "stages", "bias"})
    kind: Literal["resnet50"]

    def check_size(self, key: str, size: int) -> None:
        """At 32 or less, its last maps are single values, and those of a lone scan have no variance."""
        if size <= 32:
            raise ValueError(f"`{key}` needs a `preprocessing.size` of more than 32, not {size}")

    def forward_flop(self, size: int) -> float:
        """Ten times what its convolutions take: they are slow. An upper estimate from 80^3 voxels."""
        return 200e9 * (size / 80) ** 3


class ResNet50In2D(_OfImages):
    """MONAI's 2D ResNet-50, for weights of torchvision's layout (He 2016)."""

    label: ClassVar[str] = "2D ResNet-50"
    provides: ClassVar[frozenset[str]] = ResNet50.provides | {"an importer"}
    kind: Literal["resnet50_2d"]

    def check_size(self, key: str, size: int) -> None:
        """At 32 or less, its last maps are single values, and those of a lone scan have no variance."""
        if size <= 32:
            raise ValueError(f"`{key}` needs a `preprocessing.size` of more than 32, not {size}")

    def forward_flop(self, size: int) -> float:
        """Twice its 4.1e9 multiplications and additions of 224^2 pixels."""
        return 8.2e9 * (size / 224) ** 2


class Diffusion(_Backbone):
    """The U-Net of a local Stable Diffusion pipeline, which draws images from texts (Rombach 2022)."""

    label: ClassVar[str] = "Diffusion"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"denoiser", "attention", "mlp", "linear", "layernorm", "conv", "bias", "an importer"}
    )
    decoders: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset({"2D", "3 channels"})
    kind: Literal["diffusion"]
    folder: str = Field(
        description="of the pipeline, as diffusers stores it: unet, vae, text_encoder, tokenizer, scheduler; "
        "the U-Net's weights are given as a pretraining"
    )

    def forward_flop(self, size: int) -> float:
        """Stable Diffusion 1.5's 0.8e12 operations at 512^2 pixels."""
        return 0.8e12 * (size / 512) ** 2


Backbone = Annotated[
    ViT | ViT2D | ViTSlices | DenseNet121 | ResNet50 | ResNet50In2D | Diffusion, Field(discriminator="kind")
]
