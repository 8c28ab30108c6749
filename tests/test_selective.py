"""Methods that train a selection: what each of them leaves alone."""

import pytest
import torch
from pydantic import ValidationError

from kinds import BACKBONES, method_settings, predictor, scans, train
from neuropeft.errors import UserError
from neuropeft.methods.adapt import delta_state, merge, method_of
from neuropeft.train.gradients import summed_gradients
from neuropeft.train.memory import BatchSize

VIT = BACKBONES[0]
GPS = {"kind": "gps", "connections": 2}


def network(method):
    return predictor(VIT, method)


def loss(model):
    return torch.nn.functional.cross_entropy(model(scans()), torch.arange(2), reduction="sum")


def test_rows_of_k_stay_bitwise_though_weights_decay():
    model = network({"kind": "attention_qv"})
    train(model, {"kind": "attention_qv"}, 10)
    merge(model)
    plain = network(None).state_dict()
    for name, value in model.state_dict().items():
        if ".qkv." in name:
            (q, k, v), (plain_q, plain_k, plain_v) = value.chunk(3), plain[name].chunk(3)
            assert torch.equal(k, plain_k)
            assert not torch.equal(q, plain_q)
            assert not torch.equal(v, plain_v)


def test_training_q_and_v_alone_is_a_step_of_full_training_on_their_rows():
    alone, attention = (network({"kind": kind}) for kind in ("attention_qv", "attention"))
    for model in (alone, attention):
        loss(model).backward()
    for one, other in zip(alone.backbone.blocks, attention.backbone.blocks, strict=True):
        q, _, v = other.attn.qkv.weight.grad.chunk(3)
        torch.testing.assert_close(one.attn.qkv.rows.grad, torch.cat((q, v)))


def test_partial_trains_the_last_block_and_the_final_norm():
    names = {n for n, p in network({"kind": "partial"}).backbone.named_parameters() if p.requires_grad}
    plain = dict(network(None).backbone.named_parameters())
    assert names == {name for name in plain if name.startswith(("blocks.1.", "norm."))}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "partial", "blocks": 3}, "`blocks` is 3, but the backbone has 2"),
        ({"kind": "fairtune", "mask": ["attn", "", "mlp"]}, "`mask` is for 3 blocks, but the backbone has 2"),
        ({"kind": "gps", "connections": 49}, "`connections` is 49, but `qkv` has 48 inputs"),
    ],
    ids=["partial", "fairtune", "gps"],
)
def test_more_than_the_backbone_has_is_refused(method, words):
    with pytest.raises(UserError, match=words):
        network(method)


@pytest.mark.parametrize("mask", ["norm3", "attn+", "mlp+mlp"])
def test_a_mask_of_no_parts_is_refused(mask):
    with pytest.raises(ValidationError, match="`mask` names"):
        method_settings({"kind": "fairtune", "mask": [mask]})


def test_a_mask_names_the_parts_of_each_block_or_once_those_of_all():
    def trained(*mask):
        named = network({"kind": "fairtune", "mask": list(mask)}).backbone.named_parameters()
        return {".".join(name.split(".")[1:3]) for name, value in named if value.requires_grad}

    assert trained("norm1+attn", "mlp") == {"0.norm1", "0.attn", "1.mlp"}
    assert trained("norm2", "") == {"0.norm2"}
    assert trained("mlp") == {"0.mlp", "1.mlp"}


def test_difffit_scales_what_attention_and_mlp_add():
    model, plain = network({"kind": "difffit"}).eval(), network(None).eval()
    block, same = model.backbone.blocks[0], plain.backbone.blocks[0]
    with torch.no_grad():
        block.attn.scale.copy_(torch.linspace(0, 2, 48))
        block.mlp.scale.fill_(0.5)
    x = torch.randn(2, 8, 48)
    expected = x + torch.linspace(0, 2, 48) * same.attn(same.norm1(x))
    expected = expected + 0.5 * same.mlp(same.norm2(expected))
    torch.testing.assert_close(block(x), expected)


def test_a_delta_holds_no_frozen_weight_of_a_module_that_was_wrapped():
    names = set(delta_state(network({"kind": "difffit"})))
    assert {"backbone.blocks.0.attn.scale", "backbone.blocks.0.attn.inner.qkv.bias"} < names
    assert not any(name.endswith((".qkv.weight", "proj.weight", "fc1.weight")) for name in names)


def test_gps_trains_the_weights_with_the_largest_gradients_and_no_others():
    model, plain = network(GPS), network(None)
    found = summed_gradients(model, lambda rows: loss(model), torch.arange(2), BatchSize(2))
    plain.requires_grad_(True)
    loss(plain.eval()).backward()
    layers = {
        name: layer for name, layer in plain.backbone.named_modules() if isinstance(layer, torch.nn.Linear)
    }
    for name, layer in layers.items():
        torch.testing.assert_close(found[f"{name}.weight"], layer.weight.grad)
    method_of(GPS).select(model.backbone, method_settings(GPS).model_dump(), found)
    train(model, GPS, 3)
    merge(model)
    merged = model.state_dict()
    for name, layer in layers.items():
        moved = merged[f"backbone.{name}.weight"] != layer.weight
        threshold = found[f"{name}.weight"].abs().topk(2, dim=1).values[:, 1:]
        assert torch.equal(moved, found[f"{name}.weight"].abs() >= threshold), name
