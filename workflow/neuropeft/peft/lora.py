"""LoRA (Hu et al. 2022): low-rank updates of linear layers, with q, k and v of the fused projection apart."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.errors import UserError
from neuropeft.models.vit3d import Block, ViT3D

FUSED = ("q", "k", "v")  # order of the rows of qkv
TARGETS = (*FUSED, "proj", "fc1", "fc2")


class LoRALinear(nn.Linear):
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
        dropout: float = 0.0,
    ) -> None:
        """Wrap `linear`.

        Args:
            linear: The layer whose parameters are taken over.
            rows: Name of each target and the output rows it adapts.
            r: Rank of every target.
            alpha: Numerator of the scale alpha / r, a true division: 16 / 32 is 0.5.
            dropout: Rate of dropout on the input of A in training.
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
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

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


def inject(backbone: ViT3D, r: int, alpha: float, targets: Sequence[str], dropout: float = 0.0) -> None:
    """Put LoRA into every block of `backbone`.

    Args:
        backbone: The transformer, changed in place; its own parameters keep their `requires_grad`.
        r: Rank.
        alpha: The update is scaled by alpha / r.
        targets: Any of q, k, v, proj, fc1, fc2.
        dropout: Rate of dropout on the input of A.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets or len(set(targets)) != len(targets):
        raise UserError(f"LoRA targets {list(targets)} are not a choice without repeats from {list(TARGETS)}")
    if int(r) != r or r < 1:
        raise UserError(f"LoRA rank r is {r}; give a whole number from 1")
    width = backbone.config.width
    fused = {name: slice(i * width, (i + 1) * width) for i, name in enumerate(FUSED) if name in targets}
    for block in backbone.blocks:
        assert isinstance(block, Block)
        if fused:
            block.attn.qkv = LoRALinear(block.attn.qkv, fused, r, alpha, dropout)
        for owner, name in ((block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            if name in targets:
                linear = getattr(owner, name)
                rows = {name: slice(0, linear.out_features)}
                setattr(owner, name, LoRALinear(linear, rows, r, alpha, dropout))


def merge(model: nn.Module) -> dict[str, LoRALinear]:
    """Replace every LoRA layer of `model` by its merged plain layer; return what `unmerge` needs to undo it.

    A merged network predicts the same at no extra cost. Nothing is computed in place, so `unmerge` is exact.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    return layers


def unmerge(model: nn.Module, layers: Mapping[str, LoRALinear]) -> None:
    """Put back the LoRA layers that `merge` took out of `model`."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
