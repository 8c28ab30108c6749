"""LoRA (Hu et al. 2022): low-rank updates of linear layers, with q, k and v of the fused projection apart."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Mergeable, Method

FUSED = ("q", "k", "v")  # order of the rows of qkv


class LoRALinear(nn.Linear, Mergeable):
    """A frozen linear layer W plus (alpha / r) B A, separately for named slices of its output rows.

    A is Kaiming-uniform and B is zero, so that the layer starts as W. `weight` and `bias` keep their names
    and storage, so a state dict of the unadapted network still fits.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rows: Mapping[str, slice],
        r: int,
        alpha: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        """Wrap `linear`.

        Args:
            linear: The layer whose parameters are taken over.
            rows: Name of each target and the output rows it adapts.
            r: Rank of every target.
            alpha: Numerator of the scale alpha / r, a true division: 16 / 32 is 0.5.
            dropout: Rate of dropout on the input of A in training.
            generator: Draws A.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rows = dict(rows)
        self.scale = alpha / r
        self.dropout = dropout
        weight = linear.weight
        self.lora_a = nn.ParameterDict({name: weight.new_empty(r, self.in_features) for name in rows})
        self.lora_b = nn.ParameterDict(
            {name: weight.new_zeros(part.stop - part.start, r) for name, part in rows.items()}
        )
        for a in self.lora_a.values():
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        low = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(low, torch.cat(list(self.lora_a.values()))).flatten(0, -2)  # [tokens, targets * r]
        base = F.linear(x, self.weight, self.bias)
        # One kernel multiplies, scales and adds, without an intermediate as large as the output.
        return torch.addmm(base.flatten(0, -2), low, self._spread_b().T, alpha=self.scale).view_as(base)

    def merged(self) -> nn.Linear:
        """Return a plain layer with weight W + (alpha / r) B A; this one stays as it is."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype
        )
        update = self._spread_b() @ torch.cat(list(self.lora_a.values()))
        linear.weight = nn.Parameter((self.weight + self.scale * update).detach(), requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def _spread_b(self) -> Tensor:
        # One matrix [out, targets * r], zero outside each target's rows and columns: one product serves all
        # targets and the rows of the others receive exactly zero.
        padding = {
            name: (0, 0, part.start, self.out_features - part.stop) for name, part in self.rows.items()
        }
        return torch.cat([F.pad(self.lora_b[name], padding[name]) for name in self.rows], dim=1)


class LoRA(Method):
    """Put LoRA into the linear layers of every block, by the settings `r`, `alpha`, `targets`, `dropout`."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every layer that is a target, or holds one; the other parameters stay frozen."""
        shape = settings["r"], settings["alpha"], settings["dropout"]
        for site in backbone.sites("linear"):
            assert isinstance(site.module, nn.Linear)
            outputs = site.module.out_features
            names = FUSED if site.name == "qkv" else (site.name,)
            width = outputs // len(names)
            rows = {
                name: slice(i * width, (i + 1) * width)
                for i, name in enumerate(names)
                if name in settings["targets"]
            }
            if rows:
                setattr(site.owner, site.name, LoRALinear(site.module, rows, *shape, generator))


METHODS = {"lora": LoRA()}
