"""Backbones, and the decoder of the autoencoder that pretrains one."""

from typing import Annotated, ClassVar, Literal

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
            `tokens`, of which there may be any number, `stages` of layers, of which the last one is known,
            and `bias`, parameters of that name.
        needs: What a cohort's kind of input must provide.
    """

    provides: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]] = frozenset({"3D", "one channel"})

    @classmethod
    def label_of(cls, name: str) -> str:
        """Return what tables call a backbone of a name: what follows its kind is its size, `vit_b` ViT-B."""
        _, is_sized, size = name.partition(f"{cls.kind_name()}_")
        return f"{cls.label}-{size.upper()}" if is_sized and size else super().label_of(name)

    def check_size(self, key: str, size: int) -> None:
        """Raise `ValueError`, which names the backbone by `key`, unless it takes cubes of edge `size`."""

    def forward_flop(self, size: int) -> float:
        """Return about how many operations one scan of edge `size` takes through the network."""
        raise NotImplementedError


class ViT(_Backbone):
    """A 3D vision transformer."""

    label: ClassVar[str] = "ViT"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"tokens", "embedding", "block", "attention", "mlp", "linear", "layernorm", "bias"}
    )
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
        return self

    def check_size(self, key: str, size: int) -> None:
        """Patches must fill the cube."""
        if size % self.patch_size:
            raise ValueError(
                f"`{key}.patch_size` {self.patch_size} does not divide `preprocessing.size` {size}: change "
                "one of them"
            )

    def forward_flop(self, size: int) -> float:
        """Two operations per weight and token, and attention."""
        tokens = (size // self.patch_size) ** 3
        block = (4 + 2 * self.mlp_ratio) * self.width**2
        weights = self.depth * block + self.width * self.patch_size**3
        return 2 * tokens * weights + 4 * self.depth * self.width * tokens**2


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


Backbone = Annotated[ViT | DenseNet121 | ResNet50, Field(discriminator="kind")]
