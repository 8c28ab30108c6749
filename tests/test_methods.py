"""What every method must do, on every backbone that it fits, and the door to them."""

import copy
from typing import Any, NamedTuple, get_args

import pytest
import torch

from kinds import (
    BACKBONES,
    METHODS,
    PAIRS,
    PEFT,
    fits,
    label,
    method_settings,
    predictor,
    scans,
    spec,
    train,
)
from neuropeft import methods
from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.backbones.decoders import build_predictor as build_dense
from neuropeft.backbones.heads import Predictor
from neuropeft.config.methods import Method as Settings
from neuropeft.errors import UserError
from neuropeft.export.adapter import BASE, write_adapter
from neuropeft.export.network import SAME, load_network, save_network
from neuropeft.methods import counts, selective
from neuropeft.methods.adapt import (
    adapt,
    delta_state,
    load_delta,
    merge,
    method_of,
    parameter_groups,
    save_delta,
    unmerge,
)
from neuropeft.methods.base import Method

VIT, DENSENET = BACKBONES[:2]
SLICES = next(one for one in BACKBONES if one["kind"] == "vit_slices")
LORA = METHODS[4]
IDS = [f"{label(backbone)}-{label(method)}" for backbone, method in PAIRS]


def seen_by(model):
    """Return a batch that a network takes."""
    return scans(takes=model.backbone.takes)


def network(method):
    return predictor(VIT, method)


class Trained(NamedTuple):
    """A network after ten steps, and what is known of it from before."""

    backbone: dict[str, Any]
    method: dict[str, Any]
    before: dict[str, torch.Tensor]
    gradients: list[set[str]]
    model: Predictor


@pytest.fixture(scope="module", params=PAIRS, ids=IDS)
def trained(request) -> Trained:
    backbone, method = request.param
    model = predictor(backbone, method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = train(model, method, 10)
    with torch.no_grad():
        model.head.measure(model.backbone.tokens(seen_by(model)))
    return Trained(backbone, method, before, gradients, model.eval())


def test_the_table_and_the_settings_know_the_same_kinds_and_all_are_tested():
    settings = get_args(get_args(Settings)[0])
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in settings]
    assert set(kinds) == set(methods.MODULES) == {method["kind"] for method in METHODS}


DENSE = {
    "linear",
    "full",
    "scratch",
    "vpt_shallow",
    "vpt_deep",
    "prefix",
    "houlsby",
    "adaptformer",
    "lora",
} | {*("pro_tuning", "st_adapter", "med_tuning", "gps", "lora_conv")}


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        (backbone, method)
        for backbone, method in PAIRS
        if backbone in (VIT, DENSENET, SLICES) and method["kind"] in DENSE and not method.get("targets")
    ],
    ids=lambda one: label(one),
)
def test_a_decoder_sees_what_a_method_trains(backbone, method):
    torch.manual_seed(0)
    model = build_dense(spec(backbone), 2)
    adapt(model, method_settings(method).model_dump(), torch.Generator().manual_seed(0))
    if method["kind"] == "gps":
        gradients = {name: torch.ones_like(value) for name, value in model.backbone.named_parameters()}
        method_of(method).select(model.backbone, method_settings(method).model_dump(), gradients)
    with torch.no_grad():  # what starts at zero passes no gradient on
        for value in model.backbone.parameters():
            value += 0.01 * torch.randn(value.shape) * value.requires_grad
    model.train()
    assert model(seen_by(model)).shape == (2, 2, 32, 32, 32)
    model(seen_by(model)).square().mean().backward()
    silent = {
        name
        for name, value in model.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.any())
    }
    assert not silent
    assert all(name in delta_state(model) for name, value in model.head.named_parameters(prefix="head"))
    groups = parameter_groups(model, method_settings(method).model_dump())
    assert {group["lr"] for group in groups if group["name"].startswith("head")} == {1e-2}


# Trainable parameters of the encoder, without the head, as published or as their formula gives.
COUNTS = {
    ("vit_b", "scratch"): 88_202_496,
    ("vit_b", "linear"): 0,
    ("vit_b", "partial"): 7_089_408,
    ("vit_b", "partial_4"): 28_353_024,
    ("vit_b", "attention"): 28_348_416,
    ("vit_b", "attention_qv"): 14_174_208,
    ("vit_b", "layernorm"): 38_400,
    ("vit_b", "lora"): 294_912,
    ("vit_b", "bitfit"): 102_912,
    ("vit_b", "houlsby"): 3_559_680,
    ("vit_b", "pfeiffer"): 1_189_632,
    ("vit_b", "parallel"): 7_091_712,
    ("vit_b", "adaptformer"): 1_189_632,
    ("vit_b", "adapter_plus"): 165_984,
    ("vit_b", "adapter_drop"): 521_808,
    ("vit_b", "compacter"): 57_088,
    ("vit_b", "adapter_bias"): 46_092,
    ("vit_b", "pro_tuning"): 4_810_752,
    ("vit_b", "st_adapter"): 7_110_144,
    ("vit_b", "convpass"): 355_200,
    ("vit_b", "med_tuning"): 2_842_744,
    ("vit_s", "scratch"): 12_220_800,
    ("vit_s", "layernorm"): 9_984,
    ("vit_s", "adapter_drop"): 18_840,
    ("vit_s", "med_tuning"): 391_484,
    ("vit_b", "difffit"): 102_912 + 19_200 + 12 * 2 * 768,  # biases, scales of norms, new scales
    ("vit_b", "fairtune"): 28_348_416 + 12 * 2 * 768,  # attention and norm1
    ("vit_b", "gps"): 2 * 12 * 9 * 768,  # one weight and the bias of each neuron
    ("vit_b", "gps_3"): 4 * 12 * 9 * 768,
    ("vit_b", "vpt_shallow"): 7_680,
    ("vit_b", "vpt_deep"): 92_160,
    ("vit_b", "vpt_deep_50"): 460_800,
    ("vit_b", "prefix"): 184_320,
    ("vit_b", "prefix_mlp"): 9_857_024,
    ("vit_s", "attention_qv"): 6 * 2 * 384 * 385,
    ("vit_s", "vpt_deep"): 6 * 10 * 384,
    ("vit_l", "scratch"): 24 * (12 * 1024**2 + 13 * 1024) + 4097 * 1024 + 2 * 1024,
    ("vit_b", "rslora"): 294_912,
    ("vit_b", "lora_plus"): 294_912,
    ("vit_b", "dora"): 294_912 + 2 * 12 * 768,  # and one per adapted row
    ("vit_b", "lnlora"): 626_688,
    ("vit_b", "adalora"): 2 * 12 * (2 * 12 * 768 + 12),
    ("vit_b", "dylora"): 294_912,
    ("vit_b", "vera"): 2 * 12 * (256 + 768),
    ("vit_b", "fact_tk"): 30_976,
    ("vit_b", "fact_tt"): 61_440,
    ("vit_b", "repadapter"): 2 * 12 * (8 * 768 + 8 + 4 * 768 + 768),
    ("vit_b", "ssf"): 205_824,
    ("vit_b", "ia3"): 55_296,
    ("vit_s", "dora"): 73_728 + 2 * 6 * 384,
    ("vit_s", "vera"): 2 * 6 * (256 + 384),
    ("vit_s", "ia3"): 6 * 6 * 384,
    ("densenet121", "scratch"): 11_242_624,
    ("densenet121", "linear"): 0,
    ("densenet121", "bitfit"): 41_824,
    ("resnet50", "scratch"): 46_155_072,
    ("resnet50", "bitfit"): 26_560,
    # Of a CNN: every convolution has a batch norm, of scale and shift; 58 and 16 kernels have 3^3 voxels.
    ("densenet121", "batchnorm"): 83_648,
    ("densenet121", "last_block"): 3_339_776,
    ("densenet121", "ssf_conv"): 20_480,
    ("densenet121", "lora_conv"): 1_954_744,
    ("densenet121", "tsa"): 58 * 128 * 32,
    ("densenet121", "series"): 58 * 32**2,
    ("densenet121", "conv_adapter"): 58 * (128 * 27 + 32 + 32 * 32 + 2 * 32),
    ("resnet50", "batchnorm"): 53_120,
    ("resnet50", "last_block"): 29_120_512,
    ("resnet50", "ssf_conv"): 53_120,
    ("resnet50", "lora_conv"): 1_180_856,
    ("resnet50", "tsa"): 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2,
    ("resnet50", "series"): 3 * 64**2 + 4 * 128**2 + 6 * 256**2 + 3 * 512**2,
}
OPTIONS = {
    "houlsby": {"reduction": 8},
    "pfeiffer": {"reduction": 12},
    **{kind: {"r": 8} for kind in ("lora", "rslora", "lora_plus", "dora")},
    "partial_4": {"kind": "partial", "blocks": 4},
    "fairtune": {"mask": ["norm1+attn"]},
    "gps_3": {"kind": "gps", "connections": 3},
    "vpt_deep_50": {"kind": "vpt_deep", "prompts": 50},
    "prefix": {"prompts": 10},
    "prefix_mlp": {"kind": "prefix", "prompts": 10, "reparameterised": True},
}
SHAPES = {**counts.BACKBONES, "vit_l": {"kind": "vit", "width": 1024, "depth": 24, "heads": 16}}


@pytest.mark.parametrize(("backbone", "kind"), COUNTS, ids=["-".join(pair) for pair in COUNTS])
def test_as_many_parameters_are_trained_as_published(backbone, kind):
    method = method_settings({"kind": kind, **OPTIONS.get(kind, {})}).model_dump()
    with torch.device("meta"):
        model = build_predictor(SHAPES.get(backbone, {"kind": backbone}), 2)
        adapt(model, method, torch.default_generator)
    assert counts.count(model).encoder == COUNTS[backbone, kind]


@pytest.mark.parametrize(("backbone", "method"), PAIRS, ids=IDS)
def test_adapting_changes_no_prediction(backbone, method):
    plain, adapted = predictor(backbone).eval(), predictor(backbone, method).eval()
    before, after = plain(seen_by(plain)), adapted(seen_by(plain))
    assert torch.isfinite(after).all()
    assert torch.equal(after, before) != bool(method_settings(method).changes_at_start)


@pytest.mark.parametrize(("backbone", "method"), PAIRS, ids=IDS)
def test_a_delta_holds_nothing_frozen_that_the_start_gives(backbone, method):
    model = predictor(backbone)
    given = {id(value): value for value in model.parameters()}
    adapt(model, method_settings(method).model_dump(), torch.Generator())
    frozen = {n for n, value in model.named_parameters() if id(value) in given and not value.requires_grad}
    assert not frozen & set(delta_state(model))


@pytest.mark.parametrize(("backbone", "method"), PAIRS, ids=IDS)
def test_everything_random_comes_from_the_generator(backbone, method):
    first = predictor(backbone, method, drawn=1)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = build_predictor(spec(backbone), 2)
    here = torch.get_rng_state()
    adapt(model, method_settings(method).model_dump(), torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), here), "nothing was drawn elsewhere"
    assert torch.equal(state, here)
    other = first.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in model.state_dict().items())


def test_every_trained_parameter_has_a_gradient_within_two_steps(trained):
    wanted = {name for name, value in trained.model.named_parameters() if value.requires_grad}
    assert trained.gradients[0] | trained.gradients[1] == wanted
    assert {"head.linear.weight", "head.linear.bias"} <= wanted


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(trained, monkeypatch):
    # In training, but for what depends on a batch by nature: dropout and batch norms.
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x)
    model = copy.deepcopy(trained.model).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.eval()
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    x, y = seen_by(model).double(), torch.arange(2)

    def gradients(rows):
        outputs = model.head(model.backbone.tokens(x[rows]))
        loss = torch.nn.functional.cross_entropy(outputs, y[rows], reduction="sum")
        return torch.autograd.grad(loss, list(trainable.values()))

    parts = zip(gradients(slice(0, 1)), gradients(slice(1, 2)), strict=True)
    for name, whole, (one, other) in zip(trainable, gradients(slice(0, 2)), parts, strict=True):
        torch.testing.assert_close(one + other, whole, atol=1e-9, rtol=1e-6, msg=name)


def test_what_is_frozen_stays_bitwise_and_what_is_trained_moves(trained):
    delta, added = set(delta_state(trained.model)), trained.model.added
    for name, value in trained.model.state_dict().items():
        if name not in delta:
            assert torch.equal(value, trained.before[name]), name
        elif name not in added or name in trained.gradients[-1]:
            assert not torch.equal(value, trained.before[name]), name


def test_evaluating_twice_gives_the_same_and_changes_no_weight(trained):
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    assert torch.equal(trained.model(seen_by(trained.model)), trained.model(seen_by(trained.model)))
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_a_delta_restores_the_trained_network(trained, tmp_path):
    save_delta(tmp_path / "delta.safetensors", trained.model, {"cell": "c"})
    state, metadata = read_tensors(tmp_path / "delta.safetensors")
    assert metadata == {"cell": "c"}
    # The same start; what the method draws is another, so that it must be in the delta.
    fresh = predictor(trained.backbone, trained.method, drawn=1)
    load_delta(fresh, state)
    assert torch.equal(fresh.eval()(seen_by(fresh)), trained.model(seen_by(fresh)))


def test_merged_predicts_as_unmerged_and_unmerging_is_exact(trained):
    x = seen_by(trained.model)
    expected = trained.model(x)
    state = {name: value.clone() for name, value in trained.model.state_dict().items()}
    layers = merge(trained.model)
    merged = trained.model(x)
    unmerge(trained.model, layers)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in trained.model.state_dict().items())
    assert torch.equal(trained.model(x), expected)


class FrozenDraw(Method):
    """Adds a random vector that stays as it is."""

    def adapt(self, backbone, settings, generator):
        backbone.register_buffer("drawn", torch.randn(3, generator=generator))
        backbone.register_parameter("still", torch.nn.Parameter(torch.randn(2, generator=generator), False))


def exported_spec(backbone, method):
    """Return what defines a network of the suite, as a cell has it."""
    training = {"pool": "mean", "feature_norm": "fixed", "drop_path": 0.0}
    return {
        **{"backbone": spec(backbone), "method": method_settings(method).model_dump()},
        **{"training": training, "task": {"kind": "multilabel", "size": 2}, "seed": 0},
    }


LOW_RANK = {"lora", "rslora", "lora_plus", "dora", "adalora", "dylora", "vera", "fact_tk", "fact_tt", "hf"}
# Kinds that put something in for which no plain layer can stand.
UNMERGED = {
    *("houlsby", "pfeiffer", "parallel", "adaptformer", "adapter_plus", "adapter_drop", "compacter"),
    *("adapter_bias", "pro_tuning", "st_adapter", "convpass", "med_tuning", "difffit"),
    *("vpt_shallow", "vpt_deep", "prefix", "hf", "lnlora"),
    "ssf_conv",  # its plain convolution has a bias, which the backbone's has not
}
CONVOLUTIONAL = {"ssf_conv", "lora_conv"}


# Of CNNs one method that can be merged and one that cannot: the others are written as on the transformer.
WRITTEN = [
    pytest.param(pair, id=name)
    for pair, name in zip(PAIRS, IDS, strict=True)
    if pair[0] is VIT or (pair[0] is DENSENET and pair[1]["kind"] in CONVOLUTIONAL)
]


@pytest.mark.parametrize("trained", WRITTEN, indirect=True)
def test_an_exported_network_computes_the_same_and_is_plain_where_it_can_be(trained, tmp_path):
    design, x = exported_spec(trained.backbone, trained.method), seen_by(trained.model)
    path, before = tmp_path / "model.safetensors", trained.model.state_dict()
    is_plain = save_network(path, trained.model, design, x)
    assert is_plain == (trained.method["kind"] not in UNMERGED)
    assert trained.model.state_dict().keys() == before.keys(), "it stays as it is"
    with torch.no_grad():
        torch.testing.assert_close(load_network(path, design, is_plain)(x), trained.model(x), **SAME)


@pytest.mark.parametrize("trained", WRITTEN, indirect=True)
def test_peft_reads_what_low_rank_methods_and_its_own_tuners_export(trained, tmp_path):
    design, x = exported_spec(trained.backbone, trained.method), seen_by(trained.model)
    has_form = bool(LOW_RANK & {trained.method["kind"], *trained.method.get("combine", ())})
    assert write_adapter(tmp_path, trained.model, design, x) == (has_form and PEFT)
    if has_form and PEFT:
        import peft

        base = load_network(tmp_path / BASE, design, True)
        with torch.no_grad():
            without = base(x)
            base.backbone = peft.PeftModel.from_pretrained(base.backbone, tmp_path).eval()
            torch.testing.assert_close(base.head(base.backbone.tokens(x)), trained.model(x), **SAME)
        assert not torch.allclose(without, trained.model(x), **SAME)


def test_what_a_method_draws_is_in_the_delta_though_it_stays_frozen(monkeypatch):
    monkeypatch.setitem(selective.METHODS, "attention", FrozenDraw())
    model, other = (predictor(VIT, {"kind": "attention"}, drawn=drawn) for drawn in (0, 1))
    assert not torch.equal(model.backbone.drawn, other.backbone.drawn)
    assert {"backbone.drawn", "backbone.still"} < set(delta_state(model))
    load_delta(other, delta_state(model))
    assert torch.equal(model.backbone.drawn, other.backbone.drawn)
    assert torch.equal(model.backbone.still, other.backbone.still)


@pytest.mark.parametrize("backbone", BACKBONES, ids=label)
def test_a_backbone_refuses_the_methods_that_it_does_not_fit(backbone):
    with torch.device("meta"):
        model = build_predictor(spec(backbone), 2)
    for method in METHODS:
        if not fits(backbone, method):
            with pytest.raises(UserError, match="does not provide"):
                adapt(model, method_settings(method).model_dump(), torch.default_generator)


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
