"""Methods that give a frozen backbone learned tokens, or keys and values, to attend to."""

from typing import ClassVar, Literal

from pydantic import Field

from neuropeft.config.methods.base import MethodSettings


class _Prompted(MethodSettings):
    """What all of them share."""

    family: ClassVar[str] = "prompt"
    changes_at_start: ClassVar[str] = "tokens attend to the prompts too, whatever their values"


class VPTShallow(_Prompted):
    """Visual prompt tuning (Jia 2022): learned tokens join those of the scan before the first block."""

    label: ClassVar[str] = "VPT-shallow"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "tokens"})
    kind: Literal["vpt_shallow"]
    prompts: int = Field(default=10, ge=1, description="learned tokens")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="rate of dropout on the learned tokens")


class VPTDeep(_Prompted):
    """Visual prompt tuning (Jia 2022): learned tokens, of every block its own."""

    label: ClassVar[str] = "VPT-deep"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "tokens"})
    kind: Literal["vpt_deep"]
    prompts: int = Field(default=10, ge=1, description="learned tokens of a block")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="rate of dropout on the learned tokens")


class Prefix(_Prompted):
    """Prefix tuning (Li and Liang 2021): learned keys and values in every attention layer."""

    label: ClassVar[str] = "Prefix tuning"
    needs: ClassVar[frozenset[str]] = frozenset({"attention", "block"})
    kind: Literal["prefix"]
    prompts: int = Field(default=30, ge=1, description="learned keys, and as many values, of a layer")
    reparameterised: bool = Field(
        default=False, description="train a small MLP that computes them, which is dropped after training"
    )


Prompt = VPTShallow | VPTDeep | Prefix
