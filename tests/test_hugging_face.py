"""Tuners of Hugging Face's PEFT."""

import sys
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from kinds import BACKBONES, PEFT, method_settings, predictor, scans, train
from neuropeft.backbones.build import build_predictor
from neuropeft.config.methods.hugging_face import REFUSED, Tuner
from neuropeft.errors import UserError
from neuropeft.methods import counts
from neuropeft.methods.adapt import adapt, delta_state, load_delta

VIT = BACKBONES[0]
needs_peft = pytest.mark.skipif(not PEFT, reason="peft is not installed")


def hf(tuner, **config):
    return {"kind": "hf", "tuner": tuner, "config": config}


def test_without_peft_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft .*pip install 'neuropeft\[hf\]'"):
        predictor(VIT, hf("lora"))


@pytest.mark.parametrize("tuner", REFUSED)
def test_a_tuner_that_needs_something_else_is_refused_with_the_reason(tuner):
    with pytest.raises(ValidationError, match=f"{tuner} cannot be used here, for .*: choose another tuner"):
        method_settings(hf(tuner))


# Tuner -> (trained parameters on the paper's ViT-S, configuration), for qkv: in d = 384, out 3d, 6 layers.
COUNTS = {
    "lora": (6 * 8 * 4 * 384, {}),
    "dora": (6 * (8 * 4 * 384 + 3 * 384), {}),
    "loha": (2 * 6 * 8 * 4 * 384, {}),
    "lokr": (5_952, {}),
    "ia3": (6 * (3 * 384 + 4 * 384), {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]}),
    "vera": (6 * (256 + 3 * 384), {}),
    "oft": (35_712, {}),
    "hra": (6 * 8 * 384, {}),
}


@needs_peft
@pytest.mark.parametrize("tuner", COUNTS)
def test_as_many_parameters_are_trained_as_the_library_says(tuner):
    expected, config = COUNTS[tuner]
    method = method_settings(hf(tuner, **config)).model_dump()
    model = build_predictor(counts.BACKBONES["vit_s"], 2)
    adapt(model, method, torch.Generator())
    assert counts.count(model).encoder == expected


SMALL = {
    "c3a": {"block_size": 48},
    "miss": {"r": 8},
    "road": {"group_size": 16},
    "ia3": {"target_modules": ["qkv", "fc2"], "feedforward_modules": ["fc2"]},
    "ln_tuning": {"target_modules": ["norm1", "norm2"]},
}


@needs_peft
@pytest.mark.parametrize("tuner", get_args(Tuner))
def test_every_tuner_starts_as_it_says_learns_and_comes_back_from_its_delta(tuner):
    method = hf(tuner, **SMALL.get(tuner, {}))
    plain, model = predictor(VIT).eval()(scans()), predictor(VIT, method)
    outputs = model.eval()(scans())
    assert torch.equal(outputs, plain) == (not method_settings(method).changes_at_start)
    torch.testing.assert_close(outputs, plain, atol=0.5, rtol=0)
    gradients = train(model, method, 2)
    wanted = {name for name, value in model.named_parameters() if value.requires_grad}
    assert gradients[0] | gradients[1] == wanted
    fresh = predictor(VIT, method, drawn=1)
    load_delta(fresh, delta_state(model))
    assert torch.equal(fresh.eval()(scans()), model.eval()(scans()))


@needs_peft
@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            hf("lora", lora_alfa=4),
            "unknown key 'lora_alfa' in `config` of tuner lora: did you mean 'lora_alpha'",
        ),
        (hf("lora", task_type="SEQ_CLS"), "unknown key 'task_type'"),
        (hf("dora", use_dora=False), "unknown key 'use_dora'"),
        (
            hf("lora", target_modules=["query"]),
            r"refuses tuner lora with `target_modules` \['query'\] on ViT3D",
        ),
        (hf("road", group_size=50), "PEFT refuses tuner road .*group_size.* change its `config`"),
    ],
)
def test_a_configuration_that_peft_does_not_take_is_told(method, words):
    with pytest.raises(UserError, match=words):
        predictor(VIT, method)
