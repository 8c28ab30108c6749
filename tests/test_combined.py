"""Combinations of methods, and what a method attaches to."""

from pathlib import Path

import pytest
import torch
import yaml

from kinds import BACKBONES, method_settings, predictor
from neuropeft import grid, numerics
from neuropeft.config.methods import Combined
from neuropeft.config.read import load_config
from neuropeft.errors import UserError
from neuropeft.methods import lora, modules_of, selective
from neuropeft.methods.adapt import adapt, method_of, parameter_groups
from neuropeft.methods.base import Method
from neuropeft.methods.counts import attached

VIT, DENSENET = BACKBONES[:2]
ROOT = Path(__file__).parents[1]
RATES = {"lr": 1e-3, "weight_decay": 0.0}


def combined(parts, **settings):
    """Return the settings of a combination of {name: settings of a method}."""
    methods = {name: method_settings({**RATES, **part}) for name, part in parts.items()}
    return Combined(combine=list(parts), **settings).resolved("both", methods).model_dump()


def adapted(method):
    model = predictor(VIT)
    adapt(model, method, torch.Generator().manual_seed(0))
    return model


def trained(method):
    return {name for name, value in adapted(method).backbone.named_parameters() if value.requires_grad}


LORA = {"kind": "lora", "r": 2}
BITFIT = {"kind": "bitfit", "lr": 1e-2, "weight_decay": 0.3}


def test_parts_keep_their_rates_and_the_head_is_the_first_ones():
    method = combined({"lora": {**LORA, "head_lr": 2e-4, "weight_decay": 0.1}, "bitfit": BITFIT})
    model = adapted(method)
    names = {id(value): name for name, value in model.named_parameters()}
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, method)
        for value in group["params"]
    }
    assert set(found) == {name for name, value in model.named_parameters() if value.requires_grad}
    assert sum(len(group["params"]) for group in parameter_groups(model, method)) == len(found)
    for name, rates in found.items():
        if name.startswith("backbone."):
            assert rates == ((1e-3, 0.1) if "lora" in name else (1e-2, 0.0)), name
    assert found["head.linear.bias"] == (2e-4, 0.0)
    assert found["head.linear.weight"] == (pytest.approx(2e-4 * 768 / 48), 0.1)
    # What a search has chosen is the first part's; the others keep their ratio.
    chosen = parameter_groups(model, {**method, "lr": 3e-3, "head_lr": 5e-4})
    rates = {group["lr"] for group in chosen if group["name"].startswith("backbone")}
    assert sorted(rates) == pytest.approx([3e-3, 3e-2])
    assert min(group["lr"] for group in chosen) == 5e-4


def test_the_order_of_the_parts_does_not_change_what_is_trained():
    one, other = ({"lora": LORA, "bitfit": BITFIT}, {"bitfit": BITFIT, "lora": LORA})
    assert trained(combined(one)) == trained(combined(other))
    assert trained(combined(one)) == trained(method_settings(LORA).model_dump()) | trained(
        method_settings(BITFIT).model_dump()
    )


def test_what_a_part_has_put_in_stays_its_own():
    method = combined({"lora": LORA, "full": {"kind": "full", "layer_decay": 0.5}})
    by = adapted(method).backbone.trained_by
    assert {name for name, part in by.items() if part == "lora"} == {name for name in by if "lora" in name}
    assert by["blocks.0.attn.qkv.weight"] == "full"


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ({"norms": {"kind": "layernorm"}, "biases": BITFIT}, r"blocks\.0\.norm1\.bias"),
        ({"q": {**LORA, "targets": ["q"]}, "k": {**LORA, "targets": ["k"]}}, r"blocks\.0\.attn\.qkv"),
    ],
)
def test_a_clash_names_the_place_and_both_methods(parts, place):
    first, second = parts
    with pytest.raises(UserError, match=f"{first} and {second} both change {place}; leave one of them out"):
        adapted(combined(parts))


@pytest.mark.parametrize("second", ["tsa", "lora_conv"])
def test_a_convolution_is_wrapped_once(second):
    parts = {"first": {"kind": "conv_adapter"}, "second": {"kind": second}}
    model = predictor(DENSENET)
    with pytest.raises(UserError, match=r"first and second both change features\..*conv2"):
        adapt(model, combined(parts), torch.Generator())


def test_the_hooks_of_all_parts_are_called(monkeypatch):
    seen = []

    class Hooked(Method):
        needs_gradients = True

        def adapt(self, backbone, settings, generator):
            backbone.norm.requires_grad_(True)

        def select(self, backbone, settings, gradients):
            seen.append("select")

        def penalty(self, backbone, settings):
            return torch.tensor(settings["lr"])

        def before_step(self, backbone, settings, step, seed):
            seen.append(("before", step, seed))

        def after_step(self, backbone, settings, step, steps):
            seen.append(("after", step, steps))

    plain = combined({"lora": LORA, "bitfit": BITFIT})
    both = combined({"norm": {"kind": "layernorm", "lr": 0.25}, "lora": LORA})
    method, backbone = method_of(both), adapted(both).backbone
    assert method.penalty(backbone, both) is None
    assert not method.wants_gradients(plain)
    monkeypatch.setitem(selective.METHODS, "layernorm", Hooked())
    monkeypatch.setitem(lora.METHODS, "lora", Hooked())
    assert method.wants_gradients(both)
    method.select(backbone, both, {})
    method.before_step(backbone, both, 3, 7)
    method.after_step(backbone, both, 3, 9)
    assert seen == ["select"] * 2 + [("before", 3, 7)] * 2 + [("after", 3, 9)] * 2
    assert float(method.penalty(backbone, both)) == pytest.approx(0.25 + 1e-3)


@pytest.fixture
def raw():
    return yaml.safe_load((ROOT / "workflow/configs/demo.yaml").read_text())


def test_a_cells_settings_hold_those_of_the_parts(raw):
    raw["methods"]["bitfit"] = {"kind": "bitfit", "lr": 1e-2}
    raw["methods"]["lora_bitfit"] = {"combine": ["lora", "bitfit"]}
    raw["backbones"]["cnn"] = {"kind": "densenet121"}
    raw["grid"][0]["methods"] = ["lora_bitfit"]
    raw["grid"][0]["backbones"] = ["vit_xs", "cnn"]
    raw["grid"] = raw["grid"][:1]
    config = load_config(raw, ROOT)
    method = grid.cell_spec(config, grid.cells(config)[0])["method"]
    assert method["kind"] == "combined"
    assert method["parts"] == [config.methods[name].model_dump() for name in ("lora", "bitfit")]
    assert (method["lr"], method["head_lr"]) == (config.methods["lora"].lr, config.methods["lora"].head_lr)
    assert any("lora_bitfit on cnn needs linear" in reason for reason in grid.skipped(config))
    assert modules_of(method) == ["methods.combined", "methods.lora", "methods.selective"]
    assert numerics.version(*modules_of(method)) != numerics.version("methods.combined")
    raw["methods"]["lora"]["r"] = 3
    config = load_config(raw, ROOT)
    assert grid.cell_spec(config, grid.cells(config)[0])["method"]["parts"][0]["r"] == 3


@pytest.mark.parametrize(
    ("combine", "sentence"),
    [
        (["lora", "bitft"], "`both.combine` names 'bitft', which is not there; did you mean"),
        (["lora", "lora"], "`both.combine` names 'lora' twice: remove one"),
        (["lora", "other"], "`both.combine` names 'other', a combination or a control: name plain methods"),
        (["lora", "shuffled"], "`both.combine` names 'shuffled', a combination or a control"),
        (["scratch", "full"], "`both.combine` starts from none and from weights: leave a method out"),
        (["lora"], "`methods.both.combine`: list should have at least 2 items"),
    ],
)
def test_a_combination_that_cannot_be_is_refused(raw, combine, sentence):
    raw["methods"] |= {
        "bitfit": {"kind": "bitfit", "lr": 1e-2},
        "shuffled": {"kind": "full", "lr": 1e-4, "shuffle_labels": True},
        "other": {"combine": ["lora", "bitfit"]},
        "both": {"combine": combine},
    }
    with pytest.raises(UserError) as error:
        load_config(raw, ROOT)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "modules", "tensors"),
    [
        ({"kind": "scratch"}, 2 * 6 + 2, 2 * 12 + 4),
        ({"kind": "lora", "targets": ["q", "v", "fc1"]}, 2 * 2, 2 * 6),
        ({"kind": "layernorm"}, 5, 10),
    ],
)
def test_what_a_method_attached_to_is_counted(method, modules, tensors):
    assert attached(predictor(VIT, method)) == {"modules": modules, "tensors": tensors}


def test_a_method_that_attaches_to_nothing_says_what_it_looked_for():
    wrong = {**method_settings(LORA).model_dump(), "targets": ["query", "value"]}
    with pytest.raises(
        UserError, match="lora attaches to nothing of ViT3D, which has none of its `targets` query, value"
    ):
        adapted(wrong)
    parts = [method_settings(BITFIT).model_dump(), wrong]
    method = {**combined({"bitfit": BITFIT, "lora": LORA}), "parts": parts}
    with pytest.raises(UserError, match="lora attaches to nothing"):
        adapted(method)
