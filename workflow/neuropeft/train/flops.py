"""Floating-point operations of a training step, counted while one is made."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuropeft.backbones.heads import Predictor


def training_flops(model: Predictor, edge: int, device: torch.device) -> int:
    """Return the operations of a forward and backward pass for one scan of this edge, in voxels.

    A multiplication and an addition count as two; only matrix products and convolutions are counted.
    Gradients are dropped afterwards, but batch norms in training have seen a batch. Where the two scans that
    this takes do not fit into the memory, the model moves to the CPU and stays there.
    """
    try:
        return _count(model, edge, device)
    except torch.OutOfMemoryError:
        model.zero_grad()
    return _count(model.cpu(), edge, torch.device("cpu"))


def _count(model: Predictor, edge: int, device: torch.device) -> int:
    model.train()
    # Two scans, as batch norms cannot train on a single value.
    takes = model.backbone.takes
    scans = torch.zeros(2, takes.channels, *[edge] * takes.dims, device=device)
    # As plain products: torch has no formula for the attention kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(scans).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() // 2
