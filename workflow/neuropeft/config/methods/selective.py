"""Methods that train a selection of the backbone's own parameters."""

from typing import ClassVar, Literal

from pydantic import Field

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


class Attention(MethodSettings):
    """Fine-tune qkv and output projection of every block (Dhinagar 2024, Table 1)."""

    label: ClassVar[str] = "Attention fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    kind: Literal["attention"]


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


Selective = Scratch | Full | Attention | LayerNorm | BitFit
