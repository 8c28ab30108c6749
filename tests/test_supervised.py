"""Scans pass through the network of a cell in the right number format, and through no layer twice."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tiny_cells
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.methods import selective
from neuropeft.methods.base import Method
from neuropeft.train import supervised
from neuropeft.train.finetune import make_model
from neuropeft.train.pretraining_run import Run
from neuropeft.train.supervised import forward_outputs


@pytest.mark.parametrize(
    ("device", "wanted", "enabled"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_a_gpu_computes_in_bfloat16_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch, device: str, wanted: bool, enabled: bool
) -> None:
    entered = []

    def entering(kind: str, **options: object) -> nullcontext[None]:
        entered.append((kind, options))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", entering)
    there = SimpleNamespace(device=torch.device(device))  # scans as a GPU would hold them
    outputs = forward_outputs(lambda scans: torch.ones(2, 1, dtype=torch.bfloat16), there, wanted)
    assert outputs.dtype == torch.float32
    Run.autocast(SimpleNamespace(device=there.device, spec={"mixed_precision": wanted}))
    expected = {"dtype": torch.bfloat16, "enabled": enabled}
    assert entered == [(device, expected | {"cache_enabled": False}), (device, expected)]


class Top(Method):
    """Trains the highest layers, from a block on."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.attaches = block < 9

    def adapt(self, backbone, settings, generator) -> None:
        for name, value in backbone.named_parameters():
            value.requires_grad_(backbone.layer_of(name) >= self.block)


@pytest.mark.parametrize("block", [1, tiny_cells.BACKBONE["depth"], 9], ids=["block", "norm", "head"])
def test_what_lies_below_all_that_is_trained_is_passed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    store = tiny_cells.make_store(tmp_path / "store")
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    monkeypatch.setitem(selective.METHODS, "attention", Top(block))
    spec = tiny_cells.cell(method={"kind": "attention"}, training={"augment": {}})
    embed, passed = vit.ViT3D.embed, []
    monkeypatch.setattr(vit.ViT3D, "embed", lambda self, x: passed.append(len(x)) or embed(self, x))
    deltas = []
    for name, layers in (("held", supervised.trunk_layers), ("not", lambda model: 0)):
        monkeypatch.setattr(supervised, "trunk_layers", layers)
        out = tmp_path / name
        tiny_cells.finetune(spec, store, split, None, out, tmp_path / f"state-{name}")
        deltas.append(read_tensors(out / "delta.safetensors")[0])
        if name == "held":
            assert sum(passed) == 16 + 6 + 2, "each scan once, and two to count what a step takes"
    for name, value in deltas[0].items():
        torch.testing.assert_close(value, deltas[1][name], rtol=1e-5, atol=1e-6)
    held, whole = (tiny_cells.read_cost(tmp_path / name)["flops_per_sample"] for name in ("held", "not"))
    below = make_model(spec, None).backbone.below
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        below(torch.zeros(1, 1, *[tiny_cells.EDGE] * 3), min(block, tiny_cells.BACKBONE["depth"] + 1))
    assert whole - held == counter.get_total_flops() > 0, "no step passes them through what is held"
