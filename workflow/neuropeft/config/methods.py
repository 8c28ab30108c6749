"""Methods that adapt a backbone."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import Kind, check_no_repeats

Start = Literal["none", "weights", "either"]


class _Method(Kind):
    """What all methods share.

    Attributes:
        family: What it has in common with others, which share a colour in figures.
        needs: What a backbone must provide, for the method to attach to it.
        start: Which weights it starts from: `none`, so random ones, pretrained `weights`, or `either`, where
            what it makes of random weights is its untrained twin.
    """

    family: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    start: ClassVar[Start] = "either"
    lr: float = Field(gt=0, description="peak learning rate")
    head_lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of a head of 768 inputs, in inverse proportion for others; that of "
        "`lr` if absent",
    )
    weight_decay: float = Field(default=0.0, ge=0)
    shuffle_labels: bool = Field(default=False, description="control: train and validate on permuted labels")


class Scratch(_Method):
    """Train everything from random weights."""

    label: ClassVar[str] = "Scratch"
    family: ClassVar[str] = "whole"
    start: ClassVar[Start] = "none"
    kind: Literal["scratch"]


class Full(_Method):
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


class Attention(_Method):
    """Fine-tune qkv and output projection of every block (Dhinagar 2024, Table 1)."""

    label: ClassVar[str] = "Attention fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    kind: Literal["attention"]


class LayerNorm(_Method):
    """Fine-tune every LayerNorm (Dhinagar 2024, Table 1)."""

    label: ClassVar[str] = "LayerNorm fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"layernorm"})
    kind: Literal["layernorm"]


class LoRA(_Method):
    """Low-rank adaptation (Hu 2022): W + alpha/r * B A."""

    label: ClassVar[str] = "LoRA"
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    kind: Literal["lora"]
    r: int = Field(default=32, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / r")
    targets: list[Literal["q", "k", "v", "proj", "fc1", "fc2"]] = Field(default=["q", "v"], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _targets_once(self) -> "LoRA":
        check_no_repeats("targets", self.targets)
        return self


class BitFit(_Method):
    """Fine-tune every bias (Ben Zaken 2022): of a CNN, the shift of its batch norms."""

    label: ClassVar[str] = "BitFit"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"bias"})
    kind: Literal["bitfit"]


Method = Annotated[Scratch | Full | Attention | LayerNorm | LoRA | BitFit, Field(discriminator="kind")]
