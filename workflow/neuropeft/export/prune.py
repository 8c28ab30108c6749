"""A network without the attention heads that matter least (Michel et al. 2019, section 4)."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.heads import Predictor
from neuropeft.backbones.vit import Attention
from neuropeft.export.sides import Learnt
from neuropeft.tasks.base import Objective
from neuropeft.train.data import Volumes, load_volumes, pass_order
from neuropeft.train.sources import kind_of

SCANS = 128  # of training, at most: one backward pass each


class FewerHeads(nn.Module):
    """Self-attention with some of its heads; the weights of the others are gone."""

    def __init__(self, attention: Attention, kept: Tensor) -> None:
        """Keep the heads `kept` [h] of an attention layer."""
        super().__init__()
        width = attention.proj.in_features // attention.heads
        inner = (kept[:, None] * width + torch.arange(width)).flatten()  # [h * width]
        rows = torch.cat([part * attention.proj.in_features + inner for part in range(3)])
        self.heads = len(kept)
        self.qkv = _linear(attention.qkv.weight[rows], attention.qkv.bias[rows])
        self.proj = _linear(attention.proj.weight[:, inner], attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, n, d/heads]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def attention_layers(model: nn.Module) -> list[Attention]:
    """Return the attention layers of a network; none where it is convolutional."""
    return [part for part in model.modules() if isinstance(part, Attention)]


def importance_in_training(model: Predictor, learnt: Learnt) -> list[Tensor]:
    """Return the importance of each head on up to `SCANS` of the training scans, see `head_importance`."""
    kind, rows = kind_of(learnt.spec), learnt.sides.train
    some = pass_order(len(rows), int(learnt.spec["seed"]), 0)[:SCANS].tolist()
    places = [learnt.store.index_of(rows[number]["scan_id"]) for number in some]
    volumes = load_volumes(learnt.store.volumes, places, torch.device("cpu"))
    targets = torch.from_numpy(kind.array(rows[number]["y"] for number in some)).float()
    return head_importance(model, learnt.goal, volumes, targets)


def head_importance(model: Predictor, goal: Objective, volumes: Volumes, targets: Tensor) -> list[Tensor]:
    """Return how much the loss depends on each head.

    It is the mean over scans of the absolute derivative of a scan's loss by a factor on what the head gives,
    over the norm of that of all heads of the layer (Michel et al. 2019, section 4.1).

    Args:
        model: a network in evaluation mode, of whose attention no method is part.
        goal: the loss.
        volumes: n scans.
        targets: theirs, [n, ...].

    Returns:
        [heads] of each attention layer, in the order of `attention_layers`.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    factors = []
    for layer in attention_layers(model):
        factors.append(torch.ones(layer.heads, 1, 1, requires_grad=True))
        layer.attend = partial(_scaled, factors[-1])
    total = [torch.zeros(len(factor)) for factor in factors]
    for number in torch.arange(len(volumes)).split(1):  # of its own: the absolute value is a scan's
        loss = goal.loss(model(volumes.batch(number)), targets[number]).sum()
        for of_layer, slope in zip(total, torch.autograd.grad(loss, factors), strict=True):
            of_layer += slope.flatten().abs()
    return [F.normalize(of_layer, dim=0) for of_layer in total]


def _scaled(factor: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return factor * F.scaled_dot_product_attention(q, k, v)


def without_heads(model: Predictor, importance: Sequence[Tensor], gone: int) -> Predictor:
    """Return `model`, changed: without its `gone` least important heads; each layer keeps one.

    `gone` are all but one of each layer at most; `importance` is what `head_importance` gives.
    """
    worth = [of_layer.index_fill(0, of_layer.argmax(), torch.inf) for of_layer in importance]
    kept = torch.ones(sum(map(len, worth)), dtype=torch.bool)
    kept[torch.cat(worth).argsort(stable=True)[:gone]] = False
    sites = model.backbone.sites("attention")
    for site, of_layer in zip(sites, kept.split([len(one) for one in worth]), strict=True):
        assert isinstance(site.module, Attention)
        setattr(site.owner, site.name, FewerHeads(site.module, of_layer.nonzero().flatten()))
    return model
