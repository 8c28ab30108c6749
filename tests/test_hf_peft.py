"""Our methods compute what Hugging Face PEFT's do, where it is installed: the project does without it."""

import pytest
import torch

from kinds import BACKBONES, method_settings, predictor, scans
from neuropeft.methods.adapt import method_of

TARGETS = ["proj", "fc1", "fc2"]  # where ours and theirs divide weights alike
SHAPE = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS}


def copy_lora(ours, theirs, name, backbone):
    theirs.lora_A["default"].weight.copy_(ours.lora_a[name])
    theirs.lora_B["default"].weight.copy_(ours.lora_b[name])


def copy_dora(ours, theirs, name, backbone):
    copy_lora(ours, theirs, name, backbone)
    theirs.lora_magnitude_vector["default"].weight.copy_(ours.magnitude[name])


def copy_adalora(ours, theirs, name, backbone):
    theirs.lora_A["default"].copy_(ours.lora_q[name])
    theirs.lora_E["default"].copy_(ours.lora_e[name][:, None])
    theirs.lora_B["default"].copy_(ours.lora_p[name])


def copy_vera(ours, theirs, name, backbone):
    theirs.vera_A["default"].copy_(backbone.projections.a)
    theirs.vera_B["default"].copy_(backbone.projections.b)
    theirs.vera_lambda_d["default"].copy_(ours.vera_d[name])
    theirs.vera_lambda_b["default"].copy_(ours.vera_b[name])


def copy_ia3(ours, theirs, name, backbone):
    # Theirs scales queries too.
    scale = ours.scale if name == "fc2" else torch.cat([torch.ones(48), ours.scale])
    theirs.ia3_l["default"].copy_(scale.view_as(theirs.ia3_l["default"]))


def copy_layernorm(ours, theirs, name, backbone):
    theirs.ln_tuning_layers["default"].load_state_dict(ours.state_dict())


@pytest.fixture
def peft():
    """The library, which takes four seconds to import: not by each process that looks for tests."""
    return pytest.importorskip("peft")


# Our settings, theirs, what of theirs is trained beyond ours, and what copies a layer's weights.
CASES = {
    "lora": (
        {"kind": "lora", "r": 4, "alpha": 8, "targets": TARGETS},
        lambda peft: peft.LoraConfig(**SHAPE),
        0,
        copy_lora,
    ),
    "rslora": (
        {"kind": "rslora", "r": 4, "alpha": 8, "targets": TARGETS},
        lambda peft: peft.LoraConfig(**SHAPE, use_rslora=True),
        0,
        copy_lora,
    ),
    "dora": (
        {"kind": "dora", "r": 4, "alpha": 8, "targets": TARGETS},
        lambda peft: peft.LoraConfig(**SHAPE, use_dora=True),
        0,
        copy_dora,
    ),
    "adalora": (
        {"kind": "adalora", "init_r": 4, "target_r": 2, "alpha": 8, "targets": TARGETS},
        lambda peft: peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=8, target_modules=TARGETS, total_step=10
        ),
        0,
        copy_adalora,
    ),
    "vera": (
        {"kind": "vera", "r": 16, "targets": TARGETS},
        lambda peft: peft.VeraConfig(r=16, target_modules=TARGETS),
        0,
        copy_vera,
    ),
    "ia3": (
        {"kind": "ia3"},
        lambda peft: peft.IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
        2 * 48,
        copy_ia3,
    ),
    "layernorm": (
        {"kind": "layernorm"},
        lambda peft: peft.LNTuningConfig(target_modules=["norm1", "norm2", "norm"]),
        0,
        copy_layernorm,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_network_adapted_by_peft_computes_the_same(case, peft):
    settings, config, beyond, copy_layer = CASES[case]
    ours = predictor(BACKBONES[0], settings).backbone.eval()
    theirs = peft.get_peft_model(predictor(BACKBONES[0]).backbone, config(peft)).eval()
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert trained[1] == trained[0] + beyond
    x = scans()
    with torch.no_grad():
        start = ours.tokens(x)
        torch.testing.assert_close(theirs.tokens(x), start, atol=1e-5, rtol=1e-5)
        for value in ours.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value), alpha=0.05)
        copied = 0
        for name, layer in list(theirs.base_model.model.named_modules()):
            if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
                copy_layer(ours.get_submodule(name), layer, name.split(".")[-1], ours)
                copied += 1
        assert copied >= 4
        moved = ours.tokens(x)
        torch.testing.assert_close(theirs.tokens(x), moved, atol=1e-5, rtol=1e-5)
    assert (moved - start).abs().max() > 0.01


def test_adalora_takes_the_same_ranks_away_as_pefts_allocator(peft):
    settings = {"kind": "adalora", "init_r": 4, "target_r": 2, "alpha": 8, "tinit": 0.2, "tfinal": 0.4}
    settings = method_settings({**settings, "targets": TARGETS}).model_dump()
    shape = {"init_r": 4, "target_r": 2, "lora_alpha": 8, "target_modules": TARGETS}
    config = peft.AdaLoraConfig(**shape, total_step=10, tinit=2, tfinal=4)
    ours = predictor(BACKBONES[0], settings).backbone.eval()
    theirs = peft.get_peft_model(predictor(BACKBONES[0]).backbone, config).eval()
    layers = [
        (ours.get_submodule(name), layer, name.split(".")[-1])
        for name, layer in theirs.base_model.model.named_modules()
        if isinstance(layer, peft.tuners.adalora.AdaLoraLayer)
    ]
    torch.manual_seed(0)
    for step in range(10):
        with torch.no_grad():  # as an optimiser would
            for value in ours.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value), alpha=0.05)
            for layer, other, name in layers:
                copy_adalora(layer, other, name, ours)
        for model in (ours, theirs):
            model.zero_grad()
            model.tokens(scans())[..., 0].square().sum().backward()
        method_of(settings).after_step(ours, settings, step, 10)
        theirs.base_model.update_and_allocate(step + 1)
        for layer, other, name in layers:
            assert torch.equal(layer.lora_e[name] == 0, other.lora_E["default"][:, 0] == 0), step
    assert sum(int((layer.lora_e[name] != 0).sum()) for layer, _, name in layers) == 2 * len(layers)
