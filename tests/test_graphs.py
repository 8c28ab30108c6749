"""A recorded pass gives what the network gives, and its gradients."""

import pytest
import torch
from torch import nn

from neuropeft.train.graphs import Recorded


def steps(device: str, recorded: bool) -> list[torch.Tensor]:
    """Return outputs and gradients of four steps, the third with another batch size, and random numbers."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).to(device)
    forward = Recorded(network, network, 6) if recorded else network
    seen = []
    for size in (6, 6, 3, 6):
        outputs = forward(torch.randn(size, 4, generator=torch.Generator().manual_seed(size)).to(device))
        outputs.square().sum().backward()
        seen += [outputs.detach().clone(), *(p.grad.clone() for p in network.parameters())]
        network.zero_grad()
    return [*seen, torch.rand(1, device=device)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_recorded_pass_is_the_pass(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for one, other in zip(steps(device, True), steps(device, False), strict=True):
        assert torch.equal(one, other)
