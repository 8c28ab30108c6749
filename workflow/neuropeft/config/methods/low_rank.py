"""Methods that change the backbone's weights by few numbers; most can be merged into them."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import check_no_repeats
from neuropeft.config.methods.base import MethodSettings


class _LowRank(MethodSettings):
    """What methods share that attach to linear layers."""

    family: ClassVar[str] = "low-rank"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})


class _Targets(_LowRank):
    """What methods share that attach to chosen linear layers."""

    targets: list[Literal["q", "k", "v", "proj", "fc1", "fc2"]] = Field(default=["q", "v"], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="rate of dropout on the input of A")

    @model_validator(mode="after")
    def _targets_once(self) -> "_Targets":
        check_no_repeats("targets", self.targets)
        return self


class LoRA(_Targets):
    """Low-rank adaptation (Hu 2022): W + alpha/r * B A."""

    label: ClassVar[str] = "LoRA"
    kind: Literal["lora"]
    r: int = Field(default=32, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / r")


class RSLoRA(_Targets):
    """Rank-stabilised LoRA (Kalajdzievski 2023): W + alpha/sqrt(r) * B A."""

    label: ClassVar[str] = "rsLoRA"
    kind: Literal["rslora"]
    r: int = Field(default=32, ge=1, description="rank")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / sqrt(r)")


class LoRAPlus(_Targets):
    """LoRA+ (Hayou 2024): LoRA whose B learns faster than its A."""

    label: ClassVar[str] = "LoRA+"
    kind: Literal["lora_plus"]
    r: int = Field(default=32, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / r")
    ratio: float = Field(default=16.0, ge=1, description="learning rate of B over that of A, which is `lr`")


class DoRA(_Targets):
    """Weight-decomposed LoRA (Liu 2024): direction by LoRA, length of each output row apart."""

    label: ClassVar[str] = "DoRA"
    kind: Literal["dora"]
    r: int = Field(default=16, ge=1, description="rank")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / r")


class LNLoRA(_Targets):
    """LoRA with a LayerNorm of its own before A (Yuan 2024, FullLoRA); it cannot be merged."""

    label: ClassVar[str] = "LNLoRA"
    kind: Literal["lnlora"]
    r: int = Field(default=16, ge=1, description="rank")
    alpha: float = Field(default=16.0, gt=0, description="the update is scaled by alpha / r")


class AdaLoRA(_Targets):
    """AdaLoRA (Zhang 2023): W + alpha/init_r * P diag(e) Q, with more ranks where they matter."""

    label: ClassVar[str] = "AdaLoRA"
    kind: Literal["adalora"]
    init_r: int = Field(default=12, ge=1, description="rank of every target at the start")
    target_r: int = Field(default=8, ge=1, description="mean rank of the targets at the end")
    alpha: float = Field(default=12.0, gt=0, description="the update is scaled by alpha / init_r")
    tinit: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which all ranks stay")
    tfinal: float = Field(
        default=0.5, ge=0, lt=1, description="share of the steps after the last rank is taken"
    )
    orthogonality: float = Field(default=0.5, ge=0, description="weight of the penalty on P and Q")

    @model_validator(mode="after")
    def _ranks_fall(self) -> "AdaLoRA":
        if self.target_r > self.init_r:
            raise ValueError(f"`target_r` {self.target_r} must not exceed `init_r` {self.init_r}")
        if self.tinit + self.tfinal >= 1:
            raise ValueError("`tinit` and `tfinal` together must leave steps in which ranks are taken away")
        return self


class DyLoRA(_Targets):
    """DyLoRA (Valipour 2023): LoRA of all ranks up to r at once."""

    label: ClassVar[str] = "DyLoRA"
    kind: Literal["dylora"]
    r: int = Field(default=8, ge=1, description="largest rank")
    alpha: float = Field(default=8.0, gt=0, description="the update of rank b is scaled by alpha / b")
    predict_rank: int | None = Field(default=None, ge=1, description="rank of predictions; r if absent")

    @model_validator(mode="after")
    def _rank_is_trained(self) -> "DyLoRA":
        if self.predict_rank is not None and self.predict_rank > self.r:
            raise ValueError(f"`predict_rank` {self.predict_rank} must not exceed `r` {self.r}")
        return self


class VeRA(_Targets):
    """VeRA (Kopiczko 2024): shared random A and B, scaled by trained vectors."""

    label: ClassVar[str] = "VeRA"
    kind: Literal["vera"]
    r: int = Field(default=256, ge=1, description="rank")
    d_initial: float = Field(default=0.1, gt=0, description="where the scales between A and B start")


class _FacT(_LowRank):
    """What both formats of FacT share."""

    needs: ClassVar[frozenset[str]] = frozenset({"block", "linear"})
    r: int = Field(default=16, ge=1, description="rank")
    scale: float = Field(default=1.0, gt=0, description="factor of the update")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="rate of dropout before V")


class FacTTK(_FacT):
    """FacT (Jie 2023), Tucker's format: the updates of all blocks as one factorised tensor."""

    label: ClassVar[str] = "FacT-TK"
    kind: Literal["fact_tk"]


class FacTTT(_FacT):
    """FacT (Jie 2023), tensor-train format: the updates of all blocks as one factorised tensor."""

    label: ClassVar[str] = "FacT-TT"
    kind: Literal["fact_tt"]


class RepAdapter(_LowRank):
    """RepAdapter (Luo 2023): linear adapters before attention and MLP, which can be merged."""

    label: ClassVar[str] = "RepAdapter"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "linear"})
    kind: Literal["repadapter"]
    m: int = Field(default=8, ge=1, description="numbers between the adapter's two layers")
    groups: int = Field(default=2, ge=1, description="groups of the second layer")
    scale: float = Field(default=1.0, gt=0, description="factor of the adapter's output")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="rate of dropout between the two layers")

    @model_validator(mode="after")
    def _groups_divide(self) -> "RepAdapter":
        if self.m % self.groups:
            raise ValueError(f"`groups` {self.groups} does not divide `m` {self.m}")
        return self


class SVDiff(_LowRank):
    """SVDiff (Han 2023), SV-Diff in Dutt 2023: the singular values of every matrix and kernel are trained."""

    label: ClassVar[str] = "SV-Diff"
    kind: Literal["svdiff"]


LowRank = (
    LoRA | RSLoRA | LoRAPlus | DoRA | LNLoRA | AdaLoRA | DyLoRA | VeRA | FacTTK | FacTTT | RepAdapter | SVDiff
)
