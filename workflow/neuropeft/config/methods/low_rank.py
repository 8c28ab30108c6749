"""Methods that change the backbone's weights by few numbers, and can be merged into them."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import check_no_repeats
from neuropeft.config.methods.base import MethodSettings


class LoRA(MethodSettings):
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


LowRank = LoRA
