"""Floating-point operations of a training step, counted while one is made."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor


def training_flops(model: nn.Module, edge: int, device: torch.device, held: int = 0) -> int:
    """Return the operations that a step takes for one scan: forward and backward pass.

    A multiplication and an addition count as two; only matrix products and convolutions are counted.
    Gradients are dropped afterwards, but batch norms in training have seen a batch. Where the two scans that
    this takes do not fit into the memory, the model moves to the CPU and stays there. On the meta device
    nothing is computed.

    Args:
        model: A `Predictor`, or what maps scans [B, C, *S] to something to be summed; it holds a backbone.
        edge: Edge of a scan, in voxels.
        device: Where the model is.
        held: Layers of a predictor's backbone, from the first, whose outputs training holds (see
            `supervised.held_layers`). Each scan passes through them once, before the first step: no step
            takes their operations, and they are not counted at all.
    """
    try:
        return _count(model, edge, device, held)
    except torch.OutOfMemoryError:
        model.zero_grad()
    return _count(model.cpu(), edge, torch.device("cpu"), held)


def training_pass(model: nn.Module, scans: Tensor, held: int = 0) -> Callable[[], Tensor]:
    """Return what passes scans [B, C, *S] through a network as a training step does.

    They are through the first `held` layers by then.
    """
    if not isinstance(model, Predictor):
        return lambda: model(scans)
    if not held:
        return lambda: model.raw(scans)
    with torch.no_grad():
        below = model.backbone.below(scans, held)
    return lambda: model.head(model.backbone.above(below, held))


def blank_scans(model: nn.Module, number: int, edge: int, device: torch.device) -> Tensor:
    """Return zeros [number, C, *S], as the backbone in a network takes them, at this edge in voxels."""
    takes = next(part.takes for part in model.modules() if isinstance(part, Backbone))
    return torch.zeros(number, takes.channels, *[edge] * takes.dims, device=device)


def _count(model: nn.Module, edge: int, device: torch.device, held: int) -> int:
    model.train()
    # Two scans, as batch norms cannot train on a single value.
    step = training_pass(model, blank_scans(model, 2, edge, device), held)
    # As plain products: torch has no formula for the attention kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step().sum().backward()
    model.zero_grad()
    return counter.get_total_flops() // 2
