"""Floating-point operations of a training step, counted while one is made."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """Adds up what torch's formulas give; `FlopCounterMode` does so too, but imports torch._dynamo first."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # true wraps the method below in what does the import

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def training_flops(model: nn.Module, edge: int, device: torch.device) -> int:
    """Return the operations of a forward and backward pass for one scan of `edge`^3 voxels.

    A multiplication and an addition count as two; only matrix products and convolutions are counted.
    Gradients are dropped afterwards, but batch norms in training have seen a batch. Where the two scans that
    this takes do not fit into the memory, the model moves to the CPU and stays there.
    """
    try:
        return _count(model, edge, device)
    except torch.OutOfMemoryError:
        model.zero_grad()
    return _count(model.cpu(), edge, torch.device("cpu"))


def _count(model: nn.Module, edge: int, device: torch.device) -> int:
    model.train()
    # Two scans, as batch norms cannot train on a single value.
    scans = torch.zeros(2, 1, edge, edge, edge, device=device)
    # As plain products: torch has no formula for the attention kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        model(scans).sum().backward()
    model.zero_grad()
    return int(counter.total) // 2
