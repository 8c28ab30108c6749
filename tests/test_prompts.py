"""Prompts and prefixes: what the network computes with them, by plain formulas."""

import pytest
import torch

from kinds import BACKBONES, predictor, scans, train
from neuropeft.methods.adapt import delta_state, merge

VIT = BACKBONES[0]


def network(method, backbone=VIT):
    return predictor(backbone, {"prompts": 3, **method})


def prompts_of(model):
    return [value for name, value in model.named_parameters() if name.endswith(".prompts")]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["vpt_shallow", "vpt_deep"])
def test_prompts_are_seen_by_blocks_and_by_nothing_after_them(kind, depth):
    backbone = VIT | {"depth": depth}
    model, plain = network({"kind": kind}, backbone).eval(), predictor(backbone).eval()
    prompts = prompts_of(model)
    assert len(prompts) == (depth if kind == "vpt_deep" else 1)
    tokens = plain.backbone.embed(scans())
    for number, block in enumerate(plain.backbone.blocks):
        if number < len(prompts):
            tokens = torch.cat((prompts[number].expand(2, -1, -1), tokens[:, 3 * (number > 0) :]), dim=1)
        tokens = block(tokens)
    expected = plain.backbone.norm(tokens[:, 3:])
    torch.testing.assert_close(model.backbone.tokens(scans()), expected)


def test_prompts_start_in_the_range_of_the_patch_projection():
    values = torch.cat(prompts_of(network({"kind": "vpt_deep", "prompts": 100})))
    bound = (6 / (16**3 + 48)) ** 0.5
    assert 0.99 * bound < values.abs().max() <= bound


def test_dropout_of_prompts_is_of_every_scan_its_own_and_off_in_evaluation():
    model = network({"kind": "vpt_shallow", "dropout": 0.5})
    block, seen = model.backbone.blocks[0], []
    block.inner.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, :3]))
    model.train()(scans())
    model.eval()(scans())
    assert not torch.equal(seen[0][0], seen[0][1])
    assert 0 < (seen[0] == 0).float().mean() < 1
    assert torch.equal(seen[1], block.prompts.expand(2, -1, -1))


@pytest.mark.parametrize("reparameterised", [False, True])
def test_tokens_attend_to_a_prefix_as_to_themselves(reparameterised):
    model = network({"kind": "prefix", "reparameterised": reparameterised}).eval()
    attention = model.backbone.blocks[1].attn
    x = torch.randn(2, 8, 48)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    prefix_k, prefix_v = attention.attend.prefix()
    outputs = []
    for head in range(4):
        own = slice(12 * head, 12 * (head + 1))
        keys, values = (
            torch.cat((learned.expand(2, -1, -1), given), dim=1)[..., own]
            for learned, given in ((prefix_k, k), (prefix_v, v))
        )
        weights = (q[..., own] @ keys.transpose(1, 2) / 12**0.5).softmax(dim=-1)  # [B, n, p + n]
        outputs.append(weights @ values)
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(outputs, dim=-1)))


def test_the_mlp_of_a_prefix_is_shared_and_dropped_after_training():
    method = {"kind": "prefix", "reparameterised": True}
    model = network(method)
    assert sum(name.endswith("trunk.weight") for name in model.state_dict()) == 1
    train(model, {"prompts": 3, **method}, 2)
    stored = {name for name in delta_state(model) if "attend" in name}
    assert len(stored) == 3 + 2 * 2
    merge(model)
    left = {name: value.shape for name, value in model.state_dict().items() if "attend" in name}
    assert left == {f"backbone.blocks.{i}.attn.attend.learned": (2, 3, 48) for i in (0, 1)}
