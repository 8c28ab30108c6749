"""AdamW (Loshchilov & Hutter 2019) in one fused call per parameter group.

`torch.optim` imports torch._dynamo, and sympy with it, when the first optimiser is made: seconds that a short
fine-tune would spend before its first step. The kernel below is the one that `torch.optim.AdamW(fused=True)`
calls, on the CPU and on a GPU, and a test holds the two equal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class AdamW:
    """AdamW over groups `{"params": [...], "lr": float, "weight_decay": float}`."""

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Start with zero moments.

        Args:
            groups: Disjoint parameters with their peak learning rate and decoupled weight decay.
            betas: Decay of the first and second moment.
            eps: Added to the root of the second moment.
        """
        self.groups = [dict(group) for group in groups]
        self.betas, self.eps = betas, eps
        self.parameters: list[Tensor] = [parameter for group in self.groups for parameter in group["params"]]
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        # The kernel wants the number of steps as a tensor per parameter, on its device: no host sync.
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update all parameters that have a gradient, at `scale` times each group's learning rate."""
        end = 0
        for group in self.groups:
            start, end = end, end + len(group["params"])
            gradients = {i: g for i in range(start, end) if (g := self.parameters[i].grad) is not None}
            if not gradients:
                continue
            steps = [self.steps[i] for i in gradients]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [self.parameters[i] for i in gradients],
                list(gradients.values()),
                [self.first[i] for i in gradients],
                [self.second[i] for i in gradients],
                [],
                steps,
                lr=scale * group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, list[Tensor]]:
        """Return the moments and step counts, not copied."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    @torch.no_grad()
    def load(self, state: Mapping[str, Sequence[Tensor]]) -> None:
        """Copy in what `state` returned for the same parameters."""
        for own, saved in ((self.first, "first"), (self.second, "second"), (self.steps, "steps")):
            for tensor, value in zip(own, state[saved], strict=True):
                tensor.copy_(value)
