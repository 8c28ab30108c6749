"""The gradients by which a method chooses what it trains."""

from collections.abc import Callable

import torch
from torch import Tensor

from neuropeft.backbones.heads import Predictor
from neuropeft.train.memory import BatchSize, in_batches


def summed_gradients(
    model: Predictor, loss: Callable[[Tensor], Tensor], rows: Tensor, size: BatchSize
) -> dict[str, Tensor]:
    """Return the gradient of a loss by every parameter of the backbone, frozen ones too, by its name there.

    `loss` maps rows [b] to their summed loss. The model, in evaluation mode, is left as it is.
    """
    named = dict(model.backbone.named_parameters())
    trained = {name: value.requires_grad for name, value in named.items()}
    model.eval()
    model.backbone.requires_grad_(True)
    try:
        parts = in_batches(
            lambda batch: torch.autograd.grad(
                loss(batch), list(named.values()), allow_unused=True, materialize_grads=True
            ),
            rows,
            size,
        )
    finally:
        for name, value in named.items():
            value.requires_grad_(trained[name])
    return {name: torch.stack(values).sum(dim=0) for name, *values in zip(named, *parts, strict=True)}
