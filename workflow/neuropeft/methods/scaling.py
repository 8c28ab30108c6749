"""Methods that scale, and shift, what layers compute: SSF (Lian et al. 2022) and IA3 (Liu et al. 2022)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Inserted, Mergeable, Method

START_STD = 0.02  # of SSF's scales around 1, and of its shifts around 0


class Rescaled(Inserted, Mergeable):
    """A frozen layer `inner` whose weight and bias stand for what the two together compute."""

    @property
    def weight(self) -> Tensor:
        """The weight of one layer that does the same."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor:
        """The bias of one layer that does the same."""
        raise NotImplementedError

    def merged(self) -> nn.Module:
        """Return one layer that does the same; this one stays as it is."""
        layer = copy.deepcopy(self.inner)
        layer.weight = nn.Parameter(self.weight.detach(), requires_grad=False)
        layer.bias = nn.Parameter(self.bias.detach(), requires_grad=False)
        return layer


class ScaledShifted(Rescaled):
    """A layer, then gamma * y + beta for its outputs y; its weight alone is used of a patch embedding."""

    def __init__(self, inner: nn.Module, generator: torch.Generator) -> None:
        """Wrap `inner`; the generator draws gamma and beta [out]."""
        super().__init__()
        self.inner = inner
        weight = inner.get_parameter("weight")
        self.gamma = nn.Parameter(nn.init.normal_(weight.new_empty(len(weight)), 1, START_STD, generator))
        self.beta = nn.Parameter(nn.init.normal_(weight.new_empty(len(weight)), 0, START_STD, generator))

    def forward(self, x: Tensor) -> Tensor:
        """Map as `inner` does, then scale and shift."""
        return self.inner(x) * self.gamma + self.beta

    @property
    def weight(self) -> Tensor:
        """Its rows scaled."""
        weight = self.inner.get_parameter("weight")
        return weight * self.gamma.view(-1, *[1] * (weight.ndim - 1))

    @property
    def bias(self) -> Tensor:
        """Scaled and shifted."""
        return self.inner.get_parameter("bias") * self.gamma + self.beta


class ScaledOutputs(Rescaled):
    """A linear layer whose last outputs are scaled by trained numbers, 1 at the start."""

    def __init__(self, inner: nn.Linear, outputs: int) -> None:
        """Wrap `inner`, of which so many `outputs` are scaled."""
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(inner.weight.new_ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.inner(x) * self._gain()

    @property
    def weight(self) -> Tensor:
        """Its rows scaled."""
        return self.inner.get_parameter("weight") * self._gain()[:, None]

    @property
    def bias(self) -> Tensor:
        """Scaled."""
        return self.inner.get_parameter("bias") * self._gain()

    def _gain(self) -> Tensor:
        others = len(self.inner.get_parameter("weight")) - len(self.scale)
        return F.pad(self.scale, (others, 0), value=1.0)


class ScaledInputs(Rescaled):
    """A linear layer whose inputs are scaled by trained numbers, 1 at the start."""

    def __init__(self, inner: nn.Linear) -> None:
        """Wrap `inner`."""
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(inner.weight.new_ones(inner.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.inner(x * self.scale)

    @property
    def weight(self) -> Tensor:
        """Its columns scaled."""
        return self.inner.get_parameter("weight") * self.scale

    @property
    def bias(self) -> Tensor:
        """As it was."""
        return self.inner.get_parameter("bias")


class SSF(Method):
    """Scale and shift the outputs of the patch embedding, of every LayerNorm and of every linear layer.

    A ViT of width d, L blocks and an MLP of 4 d has 22 d L + 4 d numbers (section 3.2).
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap the layers; the other parameters stay frozen."""
        for kind in ("embedding", "layernorm", "linear"):
            for owner, name, module in backbone.sites(kind):
                setattr(owner, name, ScaledShifted(module, generator))


class IA3(Method):
    """Scale keys, values and the hidden numbers of every MLP (section 3.3).

    A ViT of width d, L blocks and an MLP of 4 d has 6 d L numbers.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap qkv and fc2 of every block; the other parameters stay frozen."""
        for owner, name, linear in backbone.sites("linear"):
            assert isinstance(linear, nn.Linear)
            if name == "qkv":
                setattr(owner, name, ScaledOutputs(linear, 2 * linear.in_features))
            elif name == "fc2":
                setattr(owner, name, ScaledInputs(linear))


METHODS = {"ssf": SSF(), "ia3": IA3()}
