"""LoRA's kin, FacT and RepAdapter: what no other method has, and their formulas written plainly."""

import math
from collections import Counter

import pytest
import torch

from kinds import BACKBONES, method_settings, predictor, scans
from neuropeft.backbones.build import build_predictor
from neuropeft.errors import UserError
from neuropeft.methods import counts
from neuropeft.methods.adalora import budget
from neuropeft.methods.adapt import adapt, merge, method_of, parameter_groups

VIT = BACKBONES[0]
ROWS = {"q": slice(0, 48), "k": slice(48, 96), "v": slice(96, 144)}


def network(kind, **options):
    """Return an adapted network in which all that is trained is random, so that nothing is zero."""
    model = predictor(VIT, {"kind": kind, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.backbone.parameters():
            if value.requires_grad:
                value.normal_(generator=generator)
    return model


def settings_of(kind, **options):
    return method_settings({"kind": kind, **options}).model_dump()


def lora(layer, name):
    return layer.lora_b[name] @ layer.lora_a[name]


def scaled(factor):
    return lambda layer, weight, name, shared: weight + factor * lora(layer, name)


def dora(layer, weight, name, shared):
    moved = weight + 2 * lora(layer, name)
    return layer.magnitude[name][:, None] * moved / moved.norm(dim=1, keepdim=True)


def adalora(layer, weight, name, shared):
    return weight + 2 * layer.lora_p[name] @ torch.diag(layer.lora_e[name]) @ layer.lora_q[name]


def vera(layer, weight, name, shared):
    a, b = shared.projections.a, shared.projections.b
    return weight + torch.diag(layer.vera_b[name]) @ b @ torch.diag(layer.vera_d[name]) @ a


FORMULAS = {
    "lora": ({"r": 4, "alpha": 8}, scaled(2)),
    "rslora": ({"r": 4, "alpha": 8}, scaled(8 / math.sqrt(4))),
    "dora": ({"r": 4, "alpha": 8}, dora),
    "adalora": ({"init_r": 4, "target_r": 2, "alpha": 8}, adalora),
    "dylora": ({"r": 4, "alpha": 8}, scaled(2)),
    "vera": ({"r": 16}, vera),
}


@pytest.mark.parametrize("targets", [["q", "v"], ["q", "k", "v"], ["k"]], ids="".join)
@pytest.mark.parametrize("kind", FORMULAS)
def test_each_target_has_its_own_update_and_other_rows_none(kind, targets):
    options, formula = FORMULAS[kind]
    model = network(kind, targets=targets, **options).eval()
    layer = model.backbone.blocks[0].attn.qkv
    merged = layer.merged().weight
    for name, rows in ROWS.items():
        weight = layer.weight[rows]
        if name in targets:
            torch.testing.assert_close(merged[rows], formula(layer, weight, name, model.backbone))
        else:
            assert torch.equal(merged[rows], weight)


def test_rslora_divides_by_the_root_of_the_rank():
    assert network("rslora", r=64, alpha=16).backbone.blocks[0].attn.qkv.scale == 2


def test_of_lora_plus_only_b_learns_faster():
    model, settings = predictor(VIT, {"kind": "lora_plus"}), settings_of("lora_plus", lr=1.0, head_lr=3.0)
    names = {id(value): name for name, value in model.named_parameters()}
    groups = parameter_groups(model, settings)
    rates = {names[id(value)]: group["lr"] for group in groups for value in group["params"]}
    assert {rate for name, rate in rates.items() if ".lora_b." in name} == {16.0}
    assert {rate for name, rate in rates.items() if ".lora_a." in name} == {1.0}
    assert rates["head.linear.bias"] == 3.0


def test_the_length_that_dora_divides_by_is_constant_in_the_backward_pass():
    layer = network("dora", r=4, alpha=8, targets=["proj"]).backbone.blocks[0].attn.proj
    x = torch.randn(5, 48)
    layer(x).square().sum().backward()
    a, b, m = (one["proj"].detach().requires_grad_() for one in (layer.lora_a, layer.lora_b, layer.magnitude))
    moved = layer.weight + 2 * b @ a
    gain = m / moved.detach().norm(dim=1)
    (x @ (gain[:, None] * moved).T + layer.bias).square().sum().backward()
    for one, value in ((layer.lora_a, a), (layer.lora_b, b), (layer.magnitude, m)):
        torch.testing.assert_close(one["proj"].grad, value.grad, atol=1e-3, rtol=1e-4)


def test_lnlora_normalises_before_a_and_cannot_be_merged():
    model = network("lnlora", r=4, alpha=8)
    layer = model.backbone.blocks[0].attn.qkv
    x = torch.randn(2, 5, 48)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    for name in ("q", "v"):
        norm = torch.nn.LayerNorm(48)
        norm.weight, norm.bias = layer.norm_weight[name], layer.norm_bias[name]
        expected[..., ROWS[name]] += 2 * norm(x) @ lora(layer, name).T
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    assert merge(model) == {}


ADALORA = settings_of("adalora", init_r=4, target_r=2, tinit=0.2, tfinal=0.4, targets=["q", "v"])


def test_the_budget_of_adalora_falls_by_a_cubic_between_two_plateaus():
    found = [budget(ADALORA, 10, done, 100) for done in (1, 20, 21, 40, 60, 61, 100)]
    assert found == [40, 40, int(20 + 20 * (1 - 1 / 40) ** 3), int(20 + 20 * 0.125), 20, 20, 20]


def test_adalora_keeps_the_most_important_ranks_of_all_layers():
    model, method = network("adalora", init_r=4, target_r=2), method_of(ADALORA)
    places = [(model.backbone.blocks[i].attn.qkv, name) for i in (0, 1) for name in ("q", "v")]
    means = [[[torch.zeros(()), torch.zeros(())] for _ in "peq"] for _ in places]
    for step in range(10):
        model.zero_grad()
        model(scans()).square().sum().backward()
        scores = []
        for (layer, name), mean in zip(places, means, strict=True):
            values = [layer.lora_p[name], layer.lora_e[name], layer.lora_q[name]]
            for value, both in zip(values, mean, strict=True):
                if step + 1 < 6:  # before the last plateau
                    now = (value * value.grad).abs().detach()
                    both[0] = 0.85 * both[0] + 0.15 * now
                    both[1] = 0.85 * both[1] + 0.15 * (now - both[0]).abs()
            p, e, q = (sensitivity * uncertainty for sensitivity, uncertainty in mean)
            scores.append(p.mean(dim=0) + e + q.mean(dim=1))
        method.after_step(model.backbone, ADALORA, step, 10)
        left = budget(ADALORA, 4, step + 1, 10)
        bound = torch.stack(scores).flatten().sort(descending=True).values[left - 1]
        for (layer, name), score in zip(places, scores, strict=True):
            assert torch.equal(layer.lora_e[name] != 0, score >= bound), step
            with torch.no_grad():
                layer.lora_e[name].add_(0.1)  # as the next step's momentum would
    assert left == 8


def test_adaloras_penalty_is_the_mean_distance_from_orthogonal():
    model = network("adalora", init_r=4, target_r=2)
    distances = []
    for block in model.backbone.blocks:
        for name in ("q", "v"):
            p, q = block.attn.qkv.lora_p[name], block.attn.qkv.lora_q[name]
            distances += [(gram - torch.eye(4)).norm() for gram in (p.T @ p, q @ q.T)]
    found = method_of(ADALORA).penalty(model.backbone, ADALORA)
    torch.testing.assert_close(found, 0.5 * torch.stack(distances).mean())


def test_dylora_draws_each_rank_as_often_by_seed_and_step_and_trains_no_more():
    settings = settings_of("dylora", r=4, alpha=8)
    model, method = network("dylora", r=4, alpha=8).train(), method_of(settings)
    drawn, layer = model.backbone.ranks.drawn, model.backbone.blocks[0].attn.qkv

    def rank(step, seed):
        method.before_step(model.backbone, settings, step, seed)
        found = int((drawn > 0).sum())
        assert drawn.tolist() == pytest.approx([8 / found] * found + [0] * (4 - found))
        return found

    often = Counter(rank(step, 0) for step in range(400))
    assert set(often) == {1, 2, 3, 4}
    assert min(often.values()) > 70
    assert [rank(step, 0) for step in range(20)] != [rank(step, 1) for step in range(20)]
    step = next(step for step in range(400) if rank(step, 0) == 2)
    assert rank(step, 0) == 2, "again the same"
    model(scans()).sum().backward()
    for name in ("q", "v"):
        assert layer.lora_a[name].grad.any(dim=1).tolist() == [True, True, False, False]
        assert layer.lora_b[name].grad.any(dim=0).tolist() == [True, True, False, False]


def test_dylora_predicts_by_any_rank_as_a_lora_of_that_rank():
    model = network("dylora", r=4, alpha=8, predict_rank=3).eval()
    method_of({"kind": "dylora"}).before_step(model.backbone, {}, 0, 0)  # what training draws is no matter
    layer = model.backbone.blocks[0].attn.qkv
    smaller = network("lora", r=3, alpha=8).backbone.blocks[0].attn.qkv
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        smaller.weight.copy_(layer.weight)
        for name in ("q", "v"):
            smaller.lora_a[name].copy_(layer.lora_a[name][:3])
            smaller.lora_b[name].copy_(layer.lora_b[name][:, :3])
    torch.testing.assert_close(layer(x), smaller(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.merged()(x), smaller(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fact_tk", "fact_tt"])
def test_fact_adds_v_c_u_to_every_square_of_the_weights(kind):
    model = network(kind, r=3, scale=2)
    shared = model.backbone.factors
    x = torch.randn(2, 5, 48)
    block = model.eval().backbone.blocks[1]
    for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        weight = layer.weight.clone()
        for i in range(weight.shape[0] // 48):
            for j in range(weight.shape[1] // 48):
                own = i * (weight.shape[1] // 48) + j
                if kind == "fact_tt":
                    core = layer.fact_c[own]
                else:
                    core = sum(p * part for p, part in zip(layer.fact_p[own], shared.core, strict=True))
                square = weight[48 * i : 48 * (i + 1), 48 * j : 48 * (j + 1)]
                square += 2 * shared.v @ core @ shared.u
        torch.testing.assert_close(layer.merged().weight, weight, atol=1e-4, rtol=1e-4)
    expected = x @ block.attn.proj.merged().weight.T + block.attn.proj.bias
    torch.testing.assert_close(block.attn.proj(x), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "r", "expected"),
    [
        *(("fact_tk", r, expected) for r, expected in ((8, 13_952), (32, 86_528))),
        *(("fact_tt", r, expected) for r, expected in ((8, 21_504), (32, 196_608))),
    ],
)
def test_fact_trains_as_many_numbers_as_its_formula_says(kind, r, expected):
    with torch.device("meta"):
        model = build_predictor(counts.BACKBONES["vit_b"], 2)
        adapt(model, settings_of(kind, r=r), torch.default_generator)
    assert counts.count(model).encoder == expected


def test_fact_refuses_an_mlp_that_it_cannot_cut():
    with pytest.raises(UserError, match="whole mlp_ratio"):
        predictor({**VIT, "mlp_ratio": 2.5}, {"kind": "fact_tt"})


def test_repadapter_is_linear_before_attention_and_mlp_and_its_second_layer_grouped():
    model = network("repadapter", m=4, groups=2, scale=3).eval()
    x = torch.randn(5, 48)
    for layer in (model.backbone.blocks[0].attn.qkv, model.backbone.blocks[1].mlp.fc1):
        low = x @ layer.down.T + layer.down_bias
        halves = [low[:, :2] @ layer.up[0].T, low[:, 2:] @ layer.up[1].T]
        adapted = x + 3 * (torch.cat(halves, dim=1) + layer.up_bias)
        torch.testing.assert_close(layer(x), layer.inner(adapted))
    assert isinstance(model.backbone.blocks[0].attn.proj, torch.nn.Linear)
    with pytest.raises(UserError, match="groups do not divide the backbone's width, 48"):
        predictor(VIT, {"kind": "repadapter", "m": 5, "groups": 5})


def test_ssf_scales_and_shifts_every_layer_once():
    model = network("ssf")
    wrapped = {n for n, module in model.backbone.named_modules() if hasattr(module, "gamma")}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert wrapped == {"patch_embed", "norm", *(f"blocks.{i}.{part}" for i in (0, 1) for part in parts)}
    plain = predictor(VIT).backbone
    torch.testing.assert_close(
        model.backbone.embed(scans()) - plain.positions,
        (plain.embed(scans()) - plain.positions) * model.backbone.patch_embed.gamma
        + model.backbone.patch_embed.beta,
        atol=1e-4,
        rtol=1e-4,
    )


def test_ia3_scales_keys_values_and_hidden_numbers():
    block, plain = network("ia3").backbone.blocks[0], predictor(VIT).backbone.blocks[0]
    x, hidden = torch.randn(5, 48), torch.randn(5, 192)
    q, k, v = plain.attn.qkv(x).split(48, dim=-1)
    scale = block.attn.qkv.scale
    torch.testing.assert_close(block.attn.qkv(x), torch.cat([q, k * scale[:48], v * scale[48:]], dim=-1))
    torch.testing.assert_close(block.mlp.fc2(hidden), plain.mlp.fc2(hidden * block.mlp.fc2.scale))
    assert isinstance(block.attn.proj, torch.nn.Linear)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "adalora", "init_r": 4, "target_r": 5}, "`target_r` 5 must not exceed `init_r` 4"),
        ({"kind": "adalora", "tinit": 0.5, "tfinal": 0.5}, "must leave steps in which ranks are taken away"),
        ({"kind": "dylora", "r": 4, "predict_rank": 5}, "`predict_rank` 5 must not exceed `r` 4"),
        ({"kind": "repadapter", "m": 8, "groups": 3}, "`groups` 3 does not divide `m` 8"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        method_settings(settings)
