"""Networks between the pretrained weights and the fine-tuned ones (Wortsman 2022, WiSE-FT, section 3).

The network of a share a has the weights (1 - a) * start + a * fine-tuned. WiSE-FT interpolates the head, too,
from that of a zero-shot classifier. The starts here have none, so that the head stays the fine-tuned one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.checkpoints import load_encoder
from neuropeft.backbones.heads import Predictor
from neuropeft.export.network import merged, plain_network


def interpolated(
    model: Predictor, spec: Mapping[str, Any], encoder: str | Path, shares: Sequence[float], scans: Tensor
) -> Iterator[Predictor]:
    """Yield the network of each share; none of a method that has no plain weights, such as prompts.

    Args:
        model: the network of a cell, in evaluation mode.
        spec: what defines it, with what a search has chosen.
        encoder: the pretrained weights that it started from.
        shares: of the fine-tuned weights, from 0 to 1.
        scans: some scans [B, C, *S], on which its method must merge into a plain network.
    """
    trained = merged(model, spec, scans)
    if trained is None:
        return
    network = plain_network(spec).to(scans.device)
    load_encoder(encoder, network.backbone)
    first = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    last = trained.backbone.state_dict()
    network.head.load_state_dict(trained.head.state_dict())
    for share in shares:
        network.backbone.load_state_dict({name: _between(first[name], last[name], share) for name in last})
        yield network


def _between(first: Tensor, last: Tensor, share: float) -> Tensor:
    # Counts, such as the batches that a batch norm has seen, have nothing between them.
    return torch.lerp(first, last, share) if last.is_floating_point() else last
