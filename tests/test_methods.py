"""What every method must do, on every backbone that it fits."""

import copy
from typing import Any, NamedTuple, get_args

import pytest
import torch

from kinds import BACKBONES, METHODS, PAIRS, PEFT, fits, label, method_settings, predictor, scans, spec, train
from neuropeft import methods
from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.backbones.decoders import build_predictor as build_dense
from neuropeft.backbones.heads import Predictor
from neuropeft.config.methods import Method as Settings
from neuropeft.errors import UserError
from neuropeft.export.adapter import BASE, write_adapter
from neuropeft.export.network import SAME, load_network, save_network
from neuropeft.methods import selective
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
SLICES, IMAGES = (
    next(one for one in BACKBONES if one["kind"] == kind) for kind in ("vit_slices", "resnet50_2d")
)
LORA = METHODS[4]
IDS = [f"{label(backbone)}-{label(method)}" for backbone, method in PAIRS]
# `make test-quick` has each method on the first transformer that it fits, and one of those for CNNs alone.
CONVOLUTIONAL = {"lora_conv"}
FIRST = {
    label(method): backbone for backbone, method in reversed(PAIRS) if backbone["kind"].startswith("vit")
}
QUICK = [
    (IMAGES if method["kind"] in CONVOLUTIONAL else FIRST.get(label(method))) is backbone
    for backbone, method in PAIRS
]
MARKS = [() if quick else pytest.mark.slow for quick in QUICK]
EACH = [pytest.param(*pair, id=name, marks=mark) for pair, name, mark in zip(PAIRS, IDS, MARKS, strict=True)]


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


@pytest.fixture(scope="module", params=[pytest.param(one.values, id=one.id, marks=one.marks) for one in EACH])
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
        pytest.param(backbone, method, marks=() if backbone is VIT else pytest.mark.slow)
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


@pytest.mark.parametrize(("backbone", "method"), EACH)
def test_adapting_changes_no_prediction(backbone, method):
    plain, adapted = predictor(backbone).eval(), predictor(backbone, method).eval()
    before, after = plain(seen_by(plain)), adapted(seen_by(plain))
    assert torch.isfinite(after).all()
    assert torch.equal(after, before) != bool(method_settings(method).changes_at_start)


@pytest.mark.parametrize(("backbone", "method"), EACH)
def test_a_delta_holds_nothing_frozen_that_the_start_gives(backbone, method):
    model = predictor(backbone)
    given = {id(value): value for value in model.parameters()}
    adapt(model, method_settings(method).model_dump(), torch.Generator())
    frozen = {n for n, value in model.named_parameters() if id(value) in given and not value.requires_grad}
    assert not frozen & set(delta_state(model))


@pytest.mark.parametrize(("backbone", "method"), EACH)
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


ON_TRANSFORMER = [
    pytest.param(pair, id=name) for pair, name in zip(PAIRS, IDS, strict=True) if pair[0] is VIT
]
# Of kinds that share tensors, wrap layers or have operations of their own, the last settings of each.
OWN = {
    *("lora", "dora", "adalora", "dylora", "vera", "fact_tk", "repadapter", "ssf", "ia3"),
    *("adaptformer", "compacter", "st_adapter", "med_tuning"),
}
LAST_OF_KIND = {one.values[0][1]["kind"]: one for one in ON_TRANSFORMER}


@pytest.mark.parametrize("trained", ON_TRANSFORMER, indirect=True)
def test_a_copy_computes_the_same_and_trains_under_autocast(trained):
    x, model = seen_by(trained.model), copy.deepcopy(trained.model)
    assert torch.equal(model(x), trained.model(x))
    # Stands for a GPU: training on CPUs is in float32. Without oneDNN, whose bfloat16 gradient of a
    # depthwise kernel is NaN in about one of 1,000 runs (torch 2.13, AVX512 without AMX).
    with torch.backends.mkldnn.flags(enabled=False):
        with torch.autocast("cpu", torch.bfloat16):
            output = model.train()(x)
        output.float().sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert [name for name, found in gradients.items() if found is None or not found.isfinite().all()] == []


@pytest.mark.slow
@pytest.mark.parametrize("trained", [LAST_OF_KIND[kind] for kind in sorted(OWN)], indirect=True)
def test_a_network_runs_under_compile(trained):
    torch._dynamo.reset()  # or each network would count as another attempt at the first
    compiled, x = torch.compile(trained.model, backend="aot_eager", fullgraph=True), seen_by(trained.model)
    torch.testing.assert_close(compiled(x), trained.model(x))


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
# Of CNNs one method that can be merged and one that cannot: the others are written as on the transformer.
WRITTEN = [
    pytest.param(pair, id=name)
    for pair, name in zip(PAIRS, IDS, strict=True)
    if pair[0] is VIT or (pair[0] is IMAGES and pair[1]["kind"] in CONVOLUTIONAL)
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
        # `untuned` attaches to nothing: the grid alone refuses it.
        if not fits(backbone, method) and method["kind"] != "untuned":
            with pytest.raises(UserError, match="does not provide"):
                adapt(model, method_settings(method).model_dump(), torch.default_generator)
