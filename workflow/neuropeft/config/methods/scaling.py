"""Methods that scale, and shift, what the backbone's layers compute."""

from typing import ClassVar, Literal

from neuropeft.config.methods.base import MethodSettings


class SSF(MethodSettings):
    """Scale and shift the outputs of every layer (Lian 2022)."""

    label: ClassVar[str] = "SSF"
    family: ClassVar[str] = "scaling"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "layernorm", "linear"})
    changes_at_start: ClassVar[str] = "scales are drawn around 1 and shifts around 0"
    kind: Literal["ssf"]


class IA3(MethodSettings):
    """Scale keys, values and the hidden numbers of every MLP (Liu 2022)."""

    label: ClassVar[str] = "IA3"
    family: ClassVar[str] = "scaling"
    needs: ClassVar[frozenset[str]] = frozenset({"block", "linear"})
    kind: Literal["ia3"]


Scaling = SSF | IA3
