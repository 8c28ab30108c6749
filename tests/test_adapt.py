"""What `adapt` makes of a network: trained parts and their groups, deltas, modes of frozen parts."""

import pytest
import torch

from kinds import BACKBONES, METHODS, predictor
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.errors import UserError
from neuropeft.methods.adapt import adapt, delta_state, load_delta, parameter_groups

VIT, DENSENET = BACKBONES[:2]
LORA = METHODS[4]


def network(method):
    return predictor(VIT, method)


def test_an_unknown_method_is_refused():
    model = predictor(VIT)
    with pytest.raises(UserError, match="method kind 'prompt' is unknown; give one of scratch, "):
        adapt(model, {"kind": "prompt"}, torch.default_generator)


@pytest.mark.parametrize("broken", ["missing", "unexpected", "shape", "method"])
def test_a_delta_that_does_not_fit_is_refused(broken):
    model = network(LORA)
    state = {name: value.clone() for name, value in delta_state(model).items()}
    if broken == "missing":
        del state["head.linear.bias"]
    elif broken == "unexpected":
        state["backbone.norm.weight"] = torch.ones(48)
    elif broken == "shape":
        state["head.linear.bias"] = torch.ones(3)
    else:
        state = delta_state(network({"kind": "attention"}))
    with pytest.raises(UserError, match="delta"):
        load_delta(model, state)


def test_a_delta_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "delta.safetensors").write_bytes(b"not a delta")
    with pytest.raises(UserError, match=r"delta\.safetensors"):
        read_tensors(tmp_path / "delta.safetensors")


def test_attention_trains_qkv_and_proj_only():
    trained = {n for n, p in network({"kind": "attention"}).backbone.named_parameters() if p.requires_grad}
    parts = [f"{layer}.{kind}" for layer in ("qkv", "proj") for kind in ("weight", "bias")]
    assert trained == {f"blocks.{i}.attn.{part}" for i in (0, 1) for part in parts}


def test_groups_decay_matrices_only_and_keep_the_head_apart():
    model = network({"kind": "full"})
    groups = parameter_groups(model, {"kind": "scratch", "lr": 1e-4, "weight_decay": 0.05, "head_lr": 1e-2})
    named = {group["name"]: group for group in groups}
    assert set(named) == {"backbone", "backbone_no_decay", "head", "head_no_decay"}
    for name, group in named.items():
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.05)
        assert all((value.ndim > 1) != name.endswith("no_decay") for value in group["params"])
    assert {name: group["lr"] for name, group in named.items()} == {
        "backbone": 1e-4,
        "backbone_no_decay": 1e-4,
        "head": pytest.approx(1e-2 * 768 / 48),  # in inverse proportion to its inputs
        "head_no_decay": 1e-2,
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    without = parameter_groups(model, {"kind": "scratch", "lr": 1e-4, "head_lr": None})
    assert {group["lr"] for group in without if group["name"] != "head"} == {1e-4}


def rates(method):
    """Return the peak learning rate of every trained parameter."""
    model = network(method)
    settings = {"lr": 1.0, "head_lr": 5.0, **method}
    names = {id(value): name for name, value in model.named_parameters()}
    groups = parameter_groups(model, settings)
    return {names[id(value)]: group["lr"] for group in groups for value in group["params"]}


def test_with_layer_decay_lower_layers_of_a_full_fine_tune_learn_slower():
    found = rates({"kind": "full", "layer_decay": 0.5})
    expected = {"patch_embed": 0.25, "blocks.0": 0.5, "blocks.1": 1.0, "norm": 1.0}
    for name, rate in found.items():
        if name.startswith("backbone."):
            layer = next(layer for layer in expected if name.startswith(f"backbone.{layer}."))
            assert rate == expected[layer], name
    assert found["head.linear.bias"] == 5.0, "the head learns at its own rate"
    for method in (LORA, {"kind": "attention"}, {"kind": "layernorm"}, {"kind": "scratch"}):
        others = rates(method)
        assert {rate for name, rate in others.items() if name.startswith("backbone.")} == {1.0}


def test_a_frozen_part_stays_in_evaluation_mode_in_training():
    model = network({"kind": "layernorm"}).train()
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["backbone.norm"]
    assert modes["head"]
    assert not modes["backbone.blocks.0.attn"]
    assert not modes["backbone.patch_embed"]
    model.backbone.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.backbone.modules())


def test_a_delta_of_a_cnn_holds_its_batch_norm_statistics():
    model, fresh = (predictor(DENSENET, {"kind": "full"}) for _ in range(2))
    x = torch.randn(2, 1, 32, 32, 32)
    model.train()(x)
    assert {name for name in model.state_dict() if "running" in name} <= set(delta_state(model))
    load_delta(fresh, delta_state(model))
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_a_frozen_cnn_keeps_its_batch_norm_statistics():
    model = predictor(DENSENET)
    model.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.randn(2, 1, 32, 32, 32))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed
    assert {name.split(".")[0] for name in delta_state(model)} == {"head"}
