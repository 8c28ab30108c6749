"""Methods that train a selection of the backbone's own parameters."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from neuropeft.config.base import check_no_repeats
from neuropeft.config.methods.base import MethodSettings, Start


class Scratch(MethodSettings):
    """Train everything from random weights."""

    label: ClassVar[str] = "Scratch"
    family: ClassVar[str] = "whole"
    start: ClassVar[Start] = "none"
    kind: Literal["scratch"]


class Full(MethodSettings):
    """Fine-tune everything."""

    label: ClassVar[str] = "Full fine-tune"
    family: ClassVar[str] = "whole"
    start: ClassVar[Start] = "weights"
    kind: Literal["full"]
    layer_decay: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="factor on the learning rate from each block to the one below it (He 2022, table 9)",
    )


class Linear(MethodSettings):
    """Train the head alone."""

    label: ClassVar[str] = "Linear probe"
    family: ClassVar[str] = "part"
    kind: Literal["linear"]


class Untuned(MethodSettings):
    """Train nothing: a generator as it comes, a control."""

    label: ClassVar[str] = "Untuned"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"denoiser"})
    is_control: ClassVar[bool] = True
    kind: Literal["untuned"]
    lr: float = Field(default=1.0, gt=0, description="of no use, as nothing is trained")


class Partial(MethodSettings):
    """Fine-tune the last blocks and the final norm (Jia 2022)."""

    label: ClassVar[str] = "Partial fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "layernorm"})
    kind: Literal["partial"]
    blocks: int = Field(default=1, ge=1, description="how many blocks are trained")


class Attention(MethodSettings):
    """Fine-tune qkv and output projection of every block (Dhinagar 2024, Table 1)."""

    label: ClassVar[str] = "Attention fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    kind: Literal["attention"]


class AttentionQV(MethodSettings):
    """Fine-tune the queries' and values' projections of every block."""

    label: ClassVar[str] = "Attention q, v fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "block"})
    kind: Literal["attention_qv"]


class LayerNorm(MethodSettings):
    """Fine-tune every LayerNorm (Dhinagar 2024, Table 1)."""

    label: ClassVar[str] = "LayerNorm fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"layernorm"})
    kind: Literal["layernorm"]


class BitFit(MethodSettings):
    """Fine-tune every bias (Ben Zaken 2022): of a CNN, the shift of its batch norms."""

    label: ClassVar[str] = "BitFit"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"bias"})
    kind: Literal["bitfit"]


class DiffFit(MethodSettings):
    """Fine-tune biases, LayerNorms, and a scale after each attention and MLP (Xie 2023)."""

    label: ClassVar[str] = "DiffFit"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"bias", "layernorm", "attention", "mlp"})
    kind: Literal["difffit"]


class FairTune(MethodSettings):
    """Fine-tune the parts of each block that a mask names (Dutt 2024)."""

    label: ClassVar[str] = "FairTune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"block"})
    kind: Literal["fairtune"]
    mask: list[str] = Field(
        min_length=1,
        description="parts of each block, from the first, or once for all: some of norm1, attn, norm2 and "
        "mlp joined by `+`, or nothing",
    )

    @field_validator("mask")
    @classmethod
    def _parts_exist(cls, value: list[str]) -> list[str]:
        for mask in value:
            parts = mask.split("+") if mask else []
            if unknown := [part for part in parts if part not in ("norm1", "attn", "norm2", "mlp")]:
                raise ValueError(f"`mask` names {unknown[0]!r}: give some of norm1, attn, norm2 and mlp")
            check_no_repeats("mask", parts)
        return value


class GPS(MethodSettings):
    """Fine-tune the weights of each neuron that have the largest gradients (Zhang 2024)."""

    label: ClassVar[str] = "GPS"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "linear"})
    kind: Literal["gps"]
    connections: int = Field(default=1, ge=1, description="trained inputs of each neuron")


Selective = (
    Scratch
    | Full
    | Linear
    | Untuned
    | Partial
    | Attention
    | AttentionQV
    | LayerNorm
    | BitFit
    | DiffFit
    | FairTune
    | GPS
)
