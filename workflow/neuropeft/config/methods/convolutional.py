"""Methods for convolutional networks."""

from typing import ClassVar, Literal

from pydantic import Field

from neuropeft.config.methods.base import MethodSettings


class BatchNorm(MethodSettings):
    """Fine-tune scale and shift of every batch norm."""

    label: ClassVar[str] = "BatchNorm fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})
    kind: Literal["batchnorm"]
    adapt_statistics: bool = Field(
        default=False,
        description="let the running statistics follow the training scans; else they stay as they are",
    )


class LastBlock(MethodSettings):
    """Fine-tune the last dense block or the last stage, with the norm that follows."""

    label: ClassVar[str] = "Last block fine-tune"
    family: ClassVar[str] = "part"
    needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    kind: Literal["last_block"]


class SSFConv(MethodSettings):
    """Scale and shift the output of every convolution (Lian 2022)."""

    label: ClassVar[str] = "SSF-conv"
    family: ClassVar[str] = "scaling"
    needs: ClassVar[frozenset[str]] = frozenset({"conv"})
    changes_at_start: ClassVar[str] = "its scales are drawn around 1 and its shifts around 0, as published"
    kind: Literal["ssf_conv"]


class LoRAConv(MethodSettings):
    """Low-rank adaptation of every convolution (Hu 2022): its kernel to r channels, then 1 x 1 x 1."""

    label: ClassVar[str] = "LoRA-conv"
    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"conv"})
    kind: Literal["lora_conv"]
    r: int = Field(default=8, ge=1, description="rank")
    alpha: float = Field(default=8.0, gt=0, description="the update is scaled by alpha / r")


class TSA(MethodSettings):
    """Task-specific adapters (Li 2022): a matrix beside every convolution of 3 x 3 x 3 voxels."""

    label: ClassVar[str] = "TSA"
    family: ClassVar[str] = "residual"
    needs: ClassVar[frozenset[str]] = frozenset({"conv"})
    changes_at_start: ClassVar[str] = "its matrices start at 0.0001 of the identity, as published"
    kind: Literal["tsa"]


class Series(MethodSettings):
    """Series residual adapters (Rebuffi 2017): norm and matrix behind convolutions of 3 x 3 x 3 voxels."""

    label: ClassVar[str] = "Series adapter"
    family: ClassVar[str] = "residual"
    needs: ClassVar[frozenset[str]] = frozenset({"conv"})
    kind: Literal["series"]


class ConvAdapter(MethodSettings):
    """Conv-Adapter (Chen 2024): a light bottleneck beside every convolution of 3 x 3 x 3 voxels."""

    label: ClassVar[str] = "Conv-Adapter"
    family: ClassVar[str] = "residual"
    needs: ClassVar[frozenset[str]] = frozenset({"conv"})
    kind: Literal["conv_adapter"]
    reduction: int = Field(default=4, ge=1, description="input channels over those of the bottleneck")


Convolutional = BatchNorm | LastBlock | SSFConv | LoRAConv | TSA | Series | ConvAdapter
