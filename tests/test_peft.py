import copy

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.models.build import build_predictor
from neuropeft.models.checkpoints import read_tensors
from neuropeft.peft import lora
from neuropeft.peft.adapt import (
    adapt,
    delta_state,
    load_delta,
    parameter_groups,
    save_delta,
)

BACKBONE = {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "patch_size": 16, "image_size": 32}
LORA = {"kind": "lora", "r": 4, "alpha": 8.0, "targets": ["q", "v"]}
EVERYWHERE = {**LORA, "targets": ["q", "k", "v", "proj", "fc1", "fc2"], "dropout": 0.1}
METHODS = [{"kind": kind} for kind in ("scratch", "full", "attention", "layernorm")] + [LORA, EVERYWHERE]
names = [f"{m['kind']}{len(m.get('targets', ''))}" for m in METHODS]


def network(method, seed=0):
    torch.manual_seed(seed)
    model = build_predictor(BACKBONE, 2)
    if method:
        adapt(model, method)
    return model


@pytest.fixture
def scans():
    return torch.randn(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def train(model, scans, steps):
    """Train for `steps` with weight decay on everything; return the gradients' names seen."""
    model.train()
    groups = parameter_groups(model, {"lr": 1e-2, "weight_decay": 0.1})
    optimiser = torch.optim.AdamW(groups)
    moved = set()
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(scans), torch.tensor([0, 1, 0, 1])).backward()
        moved |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimiser.step()
    return moved


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_every_trained_parameter_has_a_gradient_within_two_steps(method, scans):
    model = network(method)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert train(model, scans, 2) == trained
    assert {"head.linear.weight", "head.linear.bias"} < trained


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_frozen_tensors_stay_bitwise_and_trained_ones_move(method, scans):
    model = network(method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, scans, 10)
    model.head.measure(model.backbone.tokens(scans).detach())
    trained = set(delta_state(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trained), name


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_adapting_changes_no_prediction(method, scans):
    plain, adapted = network(None).eval(), network(method).eval()
    torch.testing.assert_close(adapted(scans), plain(scans), atol=0, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_evaluating_twice_gives_the_same_and_changes_no_weight(method, scans):
    model = network(method)
    train(model, scans, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    assert torch.equal(model(scans), model(scans))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_a_delta_restores_the_trained_network(method, scans, tmp_path):
    model = network(method)
    train(model, scans, 3)
    save_delta(tmp_path / "delta.safetensors", model, {"cell": "c"})
    state, metadata = read_tensors(tmp_path / "delta.safetensors")
    assert metadata == {"cell": "c"}
    assert {"head.linear.weight", "head.linear.bias"} <= set(state)
    fresh = network(method)  # the same base; the head differs from the trained one
    load_delta(fresh, state)
    assert torch.equal(fresh.eval()(scans), model.eval()(scans))


LAYERS = {
    "q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv",
    "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip


@pytest.mark.parametrize("targets", [["q", "v"], *([target] for target in LAYERS)], ids="-".join)
def test_a_delta_holds_nothing_but_what_was_trained(targets):
    assert set(delta_state(network({**LORA, "targets": targets}))) == {
        *(f"backbone.blocks.{i}.{LAYERS[t]}.lora_{m}.{t}" for i in (0, 1) for m in "ab" for t in targets),
        *(f"head.norm.{name}" for name in ("mean", "variance")),
        "head.linear.weight",
        "head.linear.bias",
    }


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


def test_lora_scale_is_a_true_division():
    layer = lora.LoRALinear(torch.nn.Linear(6, 6), {"proj": slice(0, 6)}, r=32, alpha=16)
    assert layer.scale == 0.5
    torch.nn.init.normal_(layer.lora_b["proj"])
    x = torch.randn(3, 6)
    expected = x @ (layer.weight + 0.5 * layer.lora_b["proj"] @ layer.lora_a["proj"]).T + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_starts_with_random_a_and_zero_b():
    layer = network(LORA).backbone.blocks[0].attn.qkv
    assert layer.scale == 2, "alpha / r as configured"
    assert not any(b.any() for b in layer.lora_b.values())
    bound = 48**-0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(inputs)
    assert all(0.9 * bound < a.abs().max() <= bound for a in layer.lora_a.values())
    assert not torch.equal(layer.lora_a["q"], layer.lora_a["v"])


def test_lora_on_q_and_v_leaves_k_bitwise(scans):
    model = network(LORA)
    layer = model.backbone.blocks[0].attn.qkv
    x = torch.randn(2, 8, 48)
    before = torch.nn.functional.linear(x, layer.weight, layer.bias)
    train(model, scans, 10)
    q, k, v = (layer(x) - before).split(48, dim=-1)
    assert not k.any()
    assert q.abs().max() > 0
    assert v.abs().max() > 0
    assert torch.equal(layer.merged().weight[48:96], layer.weight[48:96])


@pytest.mark.parametrize("method", [LORA, EVERYWHERE], ids=["qv", "everywhere"])
def test_merged_predicts_as_unmerged_and_unmerging_is_exact(method, scans):
    model = network(method)
    train(model, scans, 5)
    model.eval()
    expected, state = model(scans), {name: value.clone() for name, value in model.state_dict().items()}
    layers = lora.merge(model)
    assert not any(isinstance(module, lora.LoRALinear) for module in model.modules())
    assert set(model.state_dict()) == set(network(None).state_dict())
    torch.testing.assert_close(model(scans), expected, atol=1e-4, rtol=1e-4)
    lora.unmerge(model, layers)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(scans), expected)


def test_the_base_keeps_its_names_so_that_weights_load_after_adapting():
    plain = network(None, seed=1)
    adapted = network(LORA, seed=2)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    own = {name for name in delta_state(adapted) if name.startswith("head.")}
    assert set(missing) == set(delta_state(adapted)) - own


def test_lora_runs_under_compile(scans):
    model = network(EVERYWHERE).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(scans), model(scans))


def test_lora_trains_under_autocast(scans):
    model = network(LORA).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(scans)
    output.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_lora_dropout_is_off_in_evaluation(scans):
    model = network({**LORA, "dropout": 0.5})
    train(model, scans, 2)
    assert not torch.equal(model(scans), model(scans))
    model.eval()
    assert torch.equal(model(scans), model(scans))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "prompt"}, "prompt"),
        ({"kind": "lora", "rank": 3}, "rank"),
        ({**LORA, "targets": ["q", "x"]}, "x"),
        ({**LORA, "targets": []}, "targets"),
        ({**LORA, "targets": ["q", "q"]}, "repeats"),
        ({**LORA, "r": 0}, "rank r is 0"),
    ],
)
def test_a_method_that_cannot_be_is_refused(method, words):
    with pytest.raises(UserError, match=words):
        network(method)


def test_how_a_method_is_trained_is_left_to_the_trainer():
    network({**LORA, "lr": 1e-3, "head_lr": None, "weight_decay": 0.0, "shuffle_labels": False})
    network({"kind": "full", "lr": 1e-3, "layer_decay": 0.75})


def test_groups_decay_matrices_only_and_keep_the_head_apart():
    model = network({"kind": "full"})
    groups = parameter_groups(model, {"lr": 1e-4, "weight_decay": 0.05, "head_lr": 1e-2})
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
    without = parameter_groups(model, {"lr": 1e-4, "head_lr": None})
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


@pytest.fixture(scope="module")
def densenet():
    torch.manual_seed(0)
    return build_predictor({"kind": "densenet121"}, 1)


def test_densenet_is_monais_with_the_head_apart(densenet):
    from monai.networks.nets import DenseNet121

    model = copy.deepcopy(densenet).eval()
    theirs = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1).eval()
    theirs.features.load_state_dict(model.backbone.features.state_dict())
    theirs.class_layers.out.load_state_dict(model.head.linear.state_dict())
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(model(x), theirs(x))


def test_a_delta_of_a_cnn_holds_its_batch_norm_statistics(densenet):
    model, fresh = copy.deepcopy(densenet), copy.deepcopy(densenet)
    adapt(model, {"kind": "full"})
    adapt(fresh, {"kind": "full"})
    x = torch.randn(2, 1, 32, 32, 32)
    model.train()(x)
    assert {name for name in model.state_dict() if "running" in name} <= set(delta_state(model))
    load_delta(fresh, delta_state(model))
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_a_frozen_cnn_keeps_its_batch_norm_statistics(densenet):
    model = copy.deepcopy(densenet)
    model.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.randn(2, 1, 32, 32, 32))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed
    assert {name.split(".")[0] for name in delta_state(model)} == {"head"}


@pytest.mark.parametrize("kind", ["attention", "layernorm", "lora"])
def test_a_cnn_refuses_the_transformers_methods(densenet, kind):
    with pytest.raises(UserError, match="needs a ViT"):
        adapt(copy.deepcopy(densenet), {**LORA, "kind": kind} if kind == "lora" else {"kind": kind})
