"""Methods that add small trained modules to every block of a frozen backbone."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from neuropeft.config.methods.base import MethodSettings

Reduction = Annotated[int, Field(ge=1, description="width over the channels of an adapter")]
Bottleneck = Annotated[int, Field(ge=1, description="channels of an adapter")]
Scale = Annotated[float, Field(gt=0, description="factor on what the adapter adds")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="rate of dropout in the adapter")]
SMALL = "both matrices of an adapter start small, but not at zero"


class _Adapter(MethodSettings):
    """What all adapters share."""

    family: ClassVar[str] = "adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "mlp"})


class Houlsby(_Adapter):
    """Houlsby 2019: an adapter after attention and one after the MLP, before they are added."""

    label: ClassVar[str] = "Houlsby"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "block", "mlp"})
    changes_at_start: ClassVar[str] = SMALL
    kind: Literal["houlsby"]
    reduction: Reduction = 16


class Pfeiffer(_Adapter):
    """Pfeiffer 2021: an adapter after the MLP, before it is added."""

    label: ClassVar[str] = "Pfeiffer"
    changes_at_start: ClassVar[str] = SMALL
    kind: Literal["pfeiffer"]
    reduction: Reduction = 16


class AdapterDrop(_Adapter):
    """Rueckle 2021: Pfeiffer's adapters, but none in the first blocks."""

    label: ClassVar[str] = "AdapterDrop"
    changes_at_start: ClassVar[str] = SMALL
    kind: Literal["adapter_drop"]
    reduction: Reduction = 16
    left_out: int = Field(default=5, ge=0, description="first blocks without an adapter; fewer than blocks")


class Parallel(_Adapter):
    """He 2022: an adapter beside the MLP, of the same input."""

    label: ClassVar[str] = "Parallel adapter"
    kind: Literal["parallel"]
    reduction: Reduction = 2
    scale: Scale = 4.0


class AdaptFormer(_Adapter):
    """Chen 2022: an adapter beside norm and MLP, so of tokens that are not normalised."""

    label: ClassVar[str] = "AdaptFormer"
    needs: ClassVar[frozenset[str]] = frozenset({"block"})
    kind: Literal["adaptformer"]
    bottleneck: Bottleneck = 64
    scale: Scale = 0.1
    dropout: Dropout = 0.1


class AdapterPlus(_Adapter):
    """Steitz & Roth 2024: an adapter after the block, with a trained scale of every channel."""

    label: ClassVar[str] = "Adapter+"
    needs: ClassVar[frozenset[str]] = frozenset({"block"})
    changes_at_start: ClassVar[str] = SMALL
    kind: Literal["adapter_plus"]
    reduction: Reduction = 96
    drop_scans: float = Field(
        default=0.1, ge=0, lt=1, description="share of scans that skip an adapter in training"
    )


class Compacter(_Adapter):
    """Mahabadi 2021: Houlsby's adapters, their matrices sums of Kronecker products."""

    label: ClassVar[str] = "Compacter"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "block", "mlp"})
    changes_at_start: ClassVar[str] = SMALL
    kind: Literal["compacter"]
    reduction: Reduction = 32
    products: int = Field(
        default=4, ge=1, description="Kronecker products of a matrix; a divisor of width and channels"
    )


class AdapterBias(_Adapter):
    """Fu 2022: a vector is added to the MLP's output, more to some tokens than to others."""

    label: ClassVar[str] = "AdapterBias"
    kind: Literal["adapter_bias"]


class ProTuning(_Adapter):
    """Nie 2023: three convolutions over the grid of tokens, after every block."""

    label: ClassVar[str] = "Pro-tuning"
    needs: ClassVar[frozenset[str]] = frozenset({"block"})
    kind: Literal["pro_tuning"]
    bottleneck: Bottleneck = 256
    kernel: Literal[1, 3, 5] = Field(default=3, description="edge of the convolution of each channel")


class STAdapter(_Adapter):
    """Pan 2022: an adapter that convolves over the grid of tokens, before every block."""

    label: ClassVar[str] = "ST-Adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "tokens in 3D"})
    kind: Literal["st_adapter"]
    bottleneck: Bottleneck = 384
    kernel: list[Literal[1, 3, 5]] = Field(
        default=[3, 1, 1], min_length=3, max_length=3, description="edges of the convolution of each channel"
    )


class Convpass(_Adapter):
    """Jie & Deng 2022: an adapter that convolves over the grid, beside attention and beside the MLP."""

    label: ClassVar[str] = "Convpass"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "block", "mlp"})
    kind: Literal["convpass"]
    bottleneck: Bottleneck = 8
    scale: Scale = 1.0
    dropout: Dropout = 0.1


class MedTuning(_Adapter):
    """Shen 2024: a volumetric adapter of two scales and the spectrum after every block."""

    label: ClassVar[str] = "Med-Tuning"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "tokens in 3D"})
    changes_at_start: ClassVar[str] = "its adapters end in an activation of drawn weights, as published"
    kind: Literal["med_tuning"]
    reduction: Reduction = 6


Adapters = (
    Houlsby
    | Pfeiffer
    | AdapterDrop
    | Parallel
    | AdaptFormer
    | AdapterPlus
    | Compacter
    | AdapterBias
    | ProTuning
    | STAdapter
    | Convpass
    | MedTuning
)
