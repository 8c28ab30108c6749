"""RepAdapter (Luo et al. 2023): linear adapters before attention and MLP, which merge into what follows."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError
from neuropeft.methods.base import Inserted, Mergeable, Method


class AdaptedInput(Inserted, Mergeable):
    """A frozen linear layer `inner` of x + scale * up(down(x)).

    `down` is a linear layer to m numbers, Xavier-uniform, and `up` one by groups: each group of outputs sees
    its own of the m. `up` is zero at the start, and so are both biases. Dropout is between the two.
    """

    inner: nn.Linear

    def __init__(self, inner: nn.Linear, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap `inner`; the generator draws `down`."""
        super().__init__()
        self.inner, width, m = inner, inner.in_features, settings["m"]
        self.groups, self.scale, self.dropout = settings["groups"], settings["scale"], settings["dropout"]
        weight = inner.weight
        self.down = nn.Parameter(nn.init.xavier_uniform_(weight.new_empty(m, width), generator=generator))
        self.down_bias = nn.Parameter(weight.new_zeros(m))
        self.up = nn.Parameter(weight.new_zeros(self.groups, width // self.groups, m // self.groups))
        self.up_bias = nn.Parameter(weight.new_zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        low = F.dropout(F.linear(x, self.down, self.down_bias), self.dropout, self.training)
        return self.inner(x + self.scale * F.linear(low, self._up(), self.up_bias))

    def merged(self) -> nn.Module:
        """Return one linear layer that does the same; this one stays as it is."""
        weight, up = self.inner.weight, self.scale * self._up()
        layer = nn.Linear(self.inner.in_features, self.inner.out_features, device="meta", dtype=weight.dtype)
        shift = up @ self.down_bias + self.scale * self.up_bias
        layer.weight = nn.Parameter((weight + weight @ up @ self.down).detach(), requires_grad=False)
        layer.bias = nn.Parameter((self.inner.bias + weight @ shift).detach(), requires_grad=False)
        return layer.train(self.training)

    def _up(self) -> Tensor:
        # As one matrix [in, m], zero between groups: a product of its own per group would be slower.
        return torch.block_diag(*self.up)


class RepAdapter(Method):
    """Put an adapter before attention and MLP of every block: into the inputs of qkv and fc1.

    Each has d m + m + d m / groups + d numbers (section 3 and the authors' code, which has biases).
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap qkv and fc1 of every block; the other parameters stay frozen.

        Raises:
            UserError: The groups do not divide the width.
        """
        if backbone.gives.width % settings["groups"]:
            raise UserError(
                f"{settings['groups']} groups do not divide the backbone's width, {backbone.gives.width}; "
                "give other groups"
            )
        for owner, name, linear in backbone.sites("linear"):
            if name in ("qkv", "fc1"):
                assert isinstance(linear, nn.Linear)
                setattr(owner, name, AdaptedInput(linear, settings, generator))


METHODS = {"repadapter": RepAdapter()}
