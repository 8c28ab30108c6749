import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny_cells
from neuropeft.backbones.build import build_predictor
from neuropeft.methods.adapt import adapt
from neuropeft.methods.counts import BACKBONES
from neuropeft.train.flops import training_flops

VIT_S = {"kind": "vit", "width": 384, "depth": 6, "heads": 8}


def adapted(backbone: dict, method: dict) -> torch.nn.Module:
    model = build_predictor(backbone, 1)
    adapt(model, method, torch.default_generator)
    return model


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "layernorm"}, tiny_cells.LORA])
def test_equals_torchs_counter(method: dict) -> None:
    model, scan = adapted(tiny_cells.BACKBONE, method), torch.zeros(1, 1, *[tiny_cells.EDGE] * 3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(scan).sum().backward()
    assert counter.get_total_flops() > 0
    model.zero_grad()
    assert training_flops(model, tiny_cells.EDGE, torch.device("cpu")) == counter.get_total_flops()
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize(
    ("kind", "expected"), [("full", 9.18e9), ("layernorm", 6.13e9), ("attention", 6.91e9)]
)
def test_vit_s_takes_what_its_shape_implies(kind: str, expected: float) -> None:
    assert training_flops(adapted(VIT_S, {"kind": kind}), 80, torch.device("cpu")) == pytest.approx(
        expected, rel=0.01
    )


@pytest.mark.parametrize(
    ("backbone", "method", "expected"),
    [("vit_b", "full", 67.00e9), ("vit_b", "attention", 51.62e9), ("densenet121", "scratch", 59.9e9)],
)
def test_large_networks_are_counted_without_computing(backbone: str, method: str, expected: float) -> None:
    with torch.device("meta"):
        model = adapted(BACKBONES[backbone], {"kind": method})
    assert training_flops(model, 80, torch.device("meta")) == pytest.approx(expected, rel=0.01)


def test_counts_on_the_cpu_what_the_gpu_has_no_memory_for() -> None:
    model = adapted(tiny_cells.BACKBONE, tiny_cells.LORA)
    expected = training_flops(model, tiny_cells.EDGE, torch.device("cpu"))
    first = iter([True])

    def full(module, arguments):
        if next(first, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.backbone.register_forward_pre_hook(full)
    assert training_flops(model, tiny_cells.EDGE, torch.device("cpu")) == expected
