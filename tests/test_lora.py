"""LoRA: what no other method has."""

import pytest
import torch

from kinds import BACKBONES, EVERYWHERE, METHODS, predictor, scans, train
from neuropeft.methods import lora
from neuropeft.methods.adapt import delta_state, merge

VIT = BACKBONES[0]
LORA = METHODS[4]


def network(method, seed=0):
    return predictor(VIT, method, seed)


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


def test_lora_scale_is_a_true_division():
    layer = network({"kind": "lora", "r": 32, "alpha": 16, "targets": ["proj"]}).backbone.blocks[0].attn.proj
    assert layer.scale == 0.5, "not 0, as a division of integers would give"
    torch.nn.init.normal_(layer.lora_b["proj"])
    x = torch.randn(3, 48)
    expected = x @ (layer.weight + 0.5 * layer.lora_b["proj"] @ layer.lora_a["proj"]).T + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_starts_with_random_a_and_zero_b():
    layer = network(LORA).backbone.blocks[0].attn.qkv
    assert layer.scale == 2, "alpha / r as configured"
    assert not any(b.any() for b in layer.lora_b.values())
    bound = 48**-0.5  # Kaiming-uniform with a = sqrt(5): 1 / sqrt(inputs)
    assert all(0.9 * bound < a.abs().max() <= bound for a in layer.lora_a.values())
    assert not torch.equal(layer.lora_a["q"], layer.lora_a["v"])


def test_lora_on_q_and_v_leaves_k_bitwise():
    model = network(LORA)
    layer = model.backbone.blocks[0].attn.qkv
    x = torch.randn(2, 8, 48)
    before = torch.nn.functional.linear(x, layer.weight, layer.bias)
    train(model, LORA, 10)
    q, k, v = (layer(x) - before).split(48, dim=-1)
    assert not k.any()
    assert q.abs().max() > 0
    assert v.abs().max() > 0
    assert torch.equal(layer.merged().weight[48:96], layer.weight[48:96])


def test_a_merged_network_is_the_plain_one_again():
    model = network({**LORA, "targets": EVERYWHERE})
    merge(model)
    assert not any(isinstance(module, lora.LoRALinear) for module in model.modules())
    assert set(model.state_dict()) == set(network(None).state_dict())


def test_the_base_keeps_its_names_so_that_weights_load_after_adapting():
    plain = network(None, seed=1)
    adapted = network(LORA, seed=2)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    own = {name for name in delta_state(adapted) if name.startswith("head.")}
    assert set(missing) == set(delta_state(adapted)) - own


def test_lora_dropout_is_off_in_evaluation():
    model = network({**LORA, "dropout": 0.5})
    train(model, LORA, 2)
    assert not torch.equal(model(scans()), model(scans()))
    model.eval()
    assert torch.equal(model(scans()), model(scans()))
