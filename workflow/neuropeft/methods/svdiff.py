"""SVDiff (Han et al. 2023): the singular values of weights are trained, their singular vectors stay."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Inserted, Mergeable, Method


class Spectral(Inserted, Mergeable):
    """A layer W = U diag(s) V whose weight becomes U diag(relu(s + shift)) V, with `shift` from 0.

    A kernel [out, in, *edges] counts as the matrix [out, in * edges] (Han et al. 2023, section 3.2). U and V
    follow from W, so no delta holds them.
    """

    values: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, inner: nn.Module) -> None:
        """Wrap a linear layer or a convolution; r = min(out, in * edges) numbers are trained."""
        super().__init__()
        self.inner = inner
        weight = inner.get_parameter("weight").detach()
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        for name, value in (("left", left), ("values", values), ("right", right)):
            self.register_buffer(name, value, persistent=False)
        self.shift = nn.Parameter(torch.zeros_like(values))

    def weight(self) -> Tensor:
        """Return the weight that counts: at the start exactly the frozen one."""
        frozen = self.inner.get_parameter("weight")
        change = F.relu(self.values + self.shift) - self.values  # [r]
        return frozen + ((self.left * change) @ self.right).view_as(frozen)

    def forward(self, x: Tensor) -> Tensor:
        """Map as `inner` does, with that weight."""
        mapped: Tensor = torch.func.functional_call(self.inner, {"weight": self.weight()}, (x,))
        return mapped

    def merged(self) -> nn.Module:
        """Return one layer that does the same; this one stays as it is."""
        layer = copy.deepcopy(self.inner)
        layer.weight = nn.Parameter(self.weight().detach(), requires_grad=False)
        return layer


class SVDiff(Method):
    """Train the singular values of every linear layer and, where there are any, of convolutions."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap the layers; the other parameters stay frozen."""
        for kind in ("linear", *(backbone.SITES.keys() & {"conv"})):
            for owner, name, module in backbone.sites(kind):
                setattr(owner, name, Spectral(module))


METHODS = {"svdiff": SVDiff()}
