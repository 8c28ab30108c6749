"""A network's training passes as CUDA graphs.

A ViT-B launches some 1,300 kernels a step. At the batch size of a fine-tune, launching them one by one takes
an H100 four times as long as computing them (`benchmarks/gpu.py`); a graph launches all of them at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Recorded:
    """A pass that is recorded with the first batch, and replayed for all that have its size.

    Other batches, such as the parts of one that does not fit, pass through the network as it is. So do all of
    them off the GPU.
    """

    def __init__(self, network: nn.Module, forward: Callable[[Tensor], Tensor], batch_size: int) -> None:
        """Record nothing yet.

        Args:
            network: What is trained. Recording passes a batch through it a few times: training must not
                change its buffers, as batch norms do.
            forward: Its pass in training, a batch [B, ...] -> outputs [B, outputs].
            batch_size: Scans of the batches to replay.
        """
        self.network, self.forward, self.batch_size = network, forward, batch_size
        self.replay: Any = None

    def __call__(self, volumes: Tensor) -> Tensor:
        """Return the outputs of a batch."""
        if volumes.device.type != "cuda" or len(volumes) != self.batch_size:
            return self.forward(volumes)
        if self.replay is None:
            with torch.random.fork_rng([volumes.device]):  # or recording would change what is dropped
                passing = _Pass(self.network, self.forward)
                self.replay = torch.cuda.make_graphed_callables(passing, (volumes.clone(),))
        outputs: Tensor = self.replay(volumes)
        return outputs


class _Pass(nn.Module):
    """`forward` as a module whose parameters are those of `network`."""

    def __init__(self, network: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.of = network, forward

    def forward(self, volumes: Tensor) -> Tensor:
        return self.of(volumes)
