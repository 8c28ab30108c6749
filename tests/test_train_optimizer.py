import math
from itertools import pairwise

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.train.optimizer import AdamW
from neuropeft.train.schedule import check_warmup, lr_scale


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (3,), (4, 4), (7,))]


def groups(values: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": values[:2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": values[2:], "lr": 3e-3, "weight_decay": 0.0},
    ]


def set_gradients(values: list[torch.nn.Parameter], step: int) -> None:
    torch.manual_seed(step)
    for value in values:
        value.grad = torch.randn_like(value)
    if step % 3 == 0:
        values[1].grad = None  # as of a layer that stochastic depth has dropped


def test_equals_torchs_fused_adamw_bit_for_bit() -> None:
    ours, theirs = parameters(), parameters()
    own = AdamW(groups(ours), betas=(0.9, 0.95))
    reference = torch.optim.AdamW(groups(theirs), betas=(0.9, 0.95), fused=True)
    for step in range(20):
        scale = lr_scale(step, 5, 20)
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group, peak in zip(reference.param_groups, (1e-2, 3e-3), strict=True):
            group["lr"] = scale * peak
        own.step(scale)
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_state_carries_the_moments_over() -> None:
    whole, parts = parameters(), parameters()
    first = AdamW(groups(whole))
    second = AdamW(groups(parts))
    for step in range(6):
        if step == 3:
            fresh = AdamW(groups(parts))
            fresh.load(second.state())
            second = fresh
        for values, optimizer in ((whole, first), (parts, second)):
            set_gradients(values, step)
            optimizer.step(1.0)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a, b)


def test_zero_grad_drops_gradients() -> None:
    values = parameters()
    set_gradients(values, 1)
    AdamW(groups(values)).zero_grad()
    assert all(value.grad is None for value in values)


def test_schedule_warms_up_then_falls_to_zero() -> None:
    scales = [lr_scale(step, 4, 20) for step in range(20)]
    assert scales[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert scales[4] == pytest.approx(1.0)
    assert scales[12] == pytest.approx(0.5)
    assert scales[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert all(a > b for a, b in pairwise(scales[4:]))
    assert lr_scale(0, 0, 10) == 1.0


def test_warm_up_must_leave_steps() -> None:
    check_warmup("cell", 2, 3)
    with pytest.raises(UserError, match="cell: a warm-up of 3 steps leaves none of 3 at the full lr"):
        check_warmup("cell", 3, 3)
