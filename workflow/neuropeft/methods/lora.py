"""LoRA (Hu et al. 2022) and its variants: low-rank updates of linear layers, with q, k and v of qkv apart."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor
from neuropeft.methods.base import Mergeable, Method, TakenOver, parameter_groups

FUSED = ("q", "k", "v")  # order of the rows of qkv


class Target(NamedTuple):
    """A linear layer that is a target, or holds some: the child `name` of `owner`, and the rows of each."""

    owner: nn.Module
    name: str
    linear: nn.Linear
    rows: Mapping[str, slice]

    def replace(self, layer: nn.Module) -> None:
        """Put `layer` in its place."""
        setattr(self.owner, self.name, layer)


class LowRankLinear(TakenOver):
    """A frozen linear layer plus scale * U low(x), separately for named slices of its output rows.

    U [out, k] is `up`, and `low` maps inputs [..., in] to few numbers [..., k].
    """

    def __init__(self, target: Target, scale: float, dropout: float) -> None:
        """Take over the parameters of the target's layer.

        Args:
            target: The layer, and which of its output rows are adapted apart from each other.
            scale: Factor of the update.
            dropout: Rate of dropout in training.
        """
        super().__init__(target.linear)
        self.rows = dict(target.rows)
        self.scale = scale
        self.dropout = dropout

    def low(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., k]."""
        raise NotImplementedError

    def up(self) -> Tensor:
        """Return U [out, k]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        low = self.low(x)
        base = F.linear(x, self.weight, self.bias)
        return self.add(base, low, self.up())

    def add(self, base: Tensor, low: Tensor, up: Tensor) -> Tensor:
        """Return base [..., out] + scale * `low` [..., k] times `up` [out, k]."""
        # One kernel multiplies, scales and adds, without an intermediate as large as the output.
        flat = torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.T, alpha=self.scale)
        return flat.view_as(base)

    def dropped(self, x: Tensor) -> Tensor:
        """Return `x` after dropout."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def apart(self, parts: Mapping[str, Tensor] | nn.ParameterDict) -> Tensor:
        """Put each target's [rows, r] at its rows and at columns of its own: [out, targets * r].

        Zero elsewhere: one product serves all targets, and the rows of no target receive exactly zero.
        """
        return torch.cat([F.pad(parts[name], (0, 0, *self.around(name))) for name in self.rows], dim=1)

    def around(self, name: str) -> tuple[int, int]:
        """Return how many output rows are before and after those of a target."""
        return self.rows[name].start, self.out_features - self.rows[name].stop


class MatrixLinear(LowRankLinear, Mergeable):
    """A `LowRankLinear` whose update is a matrix: W + scale * U D, with D [k, in] from `down`."""

    def down(self) -> Tensor:
        """Return D [k, in]."""
        raise NotImplementedError

    def low(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., k]; dropout is on the input."""
        return F.linear(self.dropped(x), self.down())

    def merged(self) -> nn.Linear:
        """Return a plain layer with the updated weight; this one stays as it is."""
        return self.plain(self.updated(), self.bias)

    def updated(self) -> Tensor:
        """Return the weight with its update [out, in]."""
        return self.weight + self.scale * (self.up() @ self.down())


def factors(target: Target, r: int, generator: torch.Generator) -> tuple[nn.ParameterDict, nn.ParameterDict]:
    """Return A [r, in], Kaiming-uniform, and B [rows, r], zero, of all rows that are adapted apart."""
    weight, rows = target.linear.weight, target.rows
    a = nn.ParameterDict({name: weight.new_empty(r, weight.shape[1]) for name in rows})
    b = nn.ParameterDict({name: weight.new_zeros(part.stop - part.start, r) for name, part in rows.items()})
    for name in rows:  # a ParameterDict sorts its names
        nn.init.kaiming_uniform_(a[name], a=math.sqrt(5), generator=generator)
    return a, b


class LoRALinear(MatrixLinear):
    """A frozen linear layer W plus scale * B A.

    A is Kaiming-uniform and B is zero, so that the layer starts as W.
    """

    def __init__(
        self, target: Target, r: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        """Wrap the target's layer, see `LowRankLinear`, in updates of rank `r`; the generator draws A."""
        super().__init__(target, scale, dropout)
        self.lora_a, self.lora_b = factors(target, r, generator)

    def down(self) -> Tensor:
        """Return A of all targets [targets * r, in]."""
        return torch.cat([self.lora_a[name] for name in self.rows])

    def up(self) -> Tensor:
        """Return B of all targets [out, targets * r]."""
        return self.apart(self.lora_b)


class DoRALinear(LoRALinear):
    """LoRA of a weight's direction, with the length of each adapted row trained apart.

    Row i is m_i (W + scale * B A)_i / |W + scale * B A|_i. m starts as the rows' lengths; the length below
    the line counts as constant in the backward pass (Liu et al. 2024, sections 4.1 and 4.3).
    """

    def __init__(
        self, target: Target, r: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        """Wrap the target's layer; see `LoRALinear`."""
        super().__init__(target, r, scale, dropout, generator)
        self.magnitude = nn.ParameterDict({name: nn.Parameter(self._length(name)) for name in self.rows})

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        base, excess = F.linear(x, self.weight, self.bias), self._excess()
        # By what the gain exceeds 1, and beside the bias: exactly nothing at the start.
        product = base if self.bias is None else base - self.bias
        return self.add(base + excess * product, self.low(x), (1 + excess)[:, None] * self.up())

    def updated(self) -> Tensor:
        """Return the weight with its update [out, in]."""
        return (1 + self._excess())[:, None] * super().updated()

    def _excess(self) -> Tensor:
        """Return what every row [out] is multiplied with, less 1; 0 for rows of no target."""
        excess = {name: self.magnitude[name] / self._length(name) - 1 for name in self.rows}
        return torch.stack([F.pad(part, self.around(name)) for name, part in excess.items()]).sum(dim=0)

    @torch.no_grad()
    def _length(self, name: str) -> Tensor:
        update = self.scale * (self.lora_b[name] @ self.lora_a[name])
        return torch.linalg.vector_norm(self.weight[self.rows[name]] + update, dim=1)


class LNLoRALinear(LowRankLinear):
    """LoRA with a trained LayerNorm of its own before each A, which no weight can stand for.

    W x + scale * B A LN(x) (Yuan et al. 2024, FullLoRA).
    """

    def __init__(
        self, target: Target, r: int, scale: float, dropout: float, generator: torch.Generator
    ) -> None:
        """Wrap the target's layer; see `LoRALinear`."""
        super().__init__(target, scale, dropout)
        self.lora_a, self.lora_b = factors(target, r, generator)
        width = self.in_features
        self.norm_weight = nn.ParameterDict({name: self.weight.new_ones(width) for name in self.rows})
        self.norm_bias = nn.ParameterDict({name: self.weight.new_zeros(width) for name in self.rows})

    def low(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., targets * r]; dropout is on the input of A."""
        each = [F.linear(self.dropped(self._norm(x, name)), self.lora_a[name]) for name in self.rows]
        return torch.cat(each, dim=-1)

    def up(self) -> Tensor:
        """Return B of all targets [out, targets * r]."""
        return self.apart(self.lora_b)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.in_features,), self.norm_weight[name], self.norm_bias[name])


def find_targets(backbone: Backbone, names: Iterable[str]) -> list[Target]:
    """Return the linear layers that are called one of `names`, by the backbone's `NAMES`; qkv holds three."""
    chosen, found = set(names), []
    for owner, name, linear in backbone.sites("linear"):
        assert isinstance(linear, nn.Linear)
        parts = FUSED if name == "qkv" else (backbone.NAMES.get(name, name),)
        width = linear.out_features // len(parts)
        rows = {part: slice(i * width, (i + 1) * width) for i, part in enumerate(parts) if part in chosen}
        if rows:
            found.append(Target(owner, name, linear, rows))
    return found


class LoRA(Method):
    """Put LoRA into the linear layers of every block, by the settings `r`, `alpha`, `targets`, `dropout`."""

    def __init__(self, layer: type[LoRALinear] | type[LNLoRALinear] = LoRALinear) -> None:
        """Make the method that puts in layers of this class."""
        self.layer = layer

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every layer that is a target, or holds one; the other parameters stay frozen."""
        shape = settings["r"], self.scale(settings), settings["dropout"]
        for target in find_targets(backbone, settings["targets"]):
            target.replace(self.layer(target, *shape, generator))

    def scale(self, settings: Mapping[str, Any]) -> float:
        """Return the update's factor alpha / r, a true division: 16 / 32 is 0.5."""
        return float(settings["alpha"] / settings["r"])


class RSLoRA(LoRA):
    """LoRA whose updates keep their size at any rank (Kalajdzievski 2023)."""

    def scale(self, settings: Mapping[str, Any]) -> float:
        """Return the update's factor alpha / sqrt(r)."""
        return float(settings["alpha"] / math.sqrt(settings["r"]))


class LoRAPlus(LoRA):
    """LoRA whose B learns faster than its A (Hayou et al. 2024)."""

    def groups(self, model: Predictor, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the optimiser groups: every B learns at `ratio` times `lr`, all else at its own rate."""
        return parameter_groups(
            model, settings, lambda name: settings["ratio"] if ".lora_b." in name else 1.0
        )


METHODS = {
    "lora": LoRA(),
    "rslora": RSLoRA(),
    "lora_plus": LoRAPlus(),
    "dora": LoRA(DoRALinear),
    "lnlora": LoRA(LNLoRALinear),
}
