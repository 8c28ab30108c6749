"""Adapters: what no other method has."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinds import BACKBONES, METHODS, method_settings, predictor
from neuropeft.backbones.build import build_predictor
from neuropeft.errors import UserError
from neuropeft.methods import counts
from neuropeft.methods.adapt import adapt
from neuropeft.methods.adapters import DropScans

VIT = BACKBONES[0]
ADAPTERS = [method for method in METHODS if method_settings(method).family == "adapter"]
OF_KIND = {method["kind"]: method for method in reversed(ADAPTERS)}


def on_meta(backbone, method):
    with torch.device("meta"):
        model = build_predictor(backbone, 2)
        adapt(model, method_settings(method).model_dump(), torch.default_generator)
    return model


def filled(kind):
    """Return the encoder of a network with adapters none of whose numbers is special, and tokens."""
    model = predictor(VIT, OF_KIND[kind]).eval()
    generator = torch.Generator().manual_seed(0)
    for value in model.backbone.parameters():
        if value.requires_grad:
            nn.init.normal_(value, std=0.3, generator=generator)
    return model.backbone, torch.randn(2, 8, 48, generator=generator)


def bottleneck(adapter, x, activation):
    return adapter.up(activation(adapter.down(x)))


# Counts in ViT-B beside those of the conformance suite, published or by formula.
@pytest.mark.parametrize(
    ("method", "count"),
    [
        ({"kind": "houlsby"}, 1_789_056),
        ({"kind": "houlsby", "reduction": 96}, 313_536),
        ({"kind": "parallel", "reduction": 12}, 1_189_632),
        ({"kind": "st_adapter", "kernel": [3, 3, 3]}, 7_220_736),
        ({"kind": "st_adapter", "bottleneck": 128, "kernel": [3, 3, 3]}, 2_413_056),
    ],
)
def test_counts_of_other_sizes(method, count):
    assert counts.count(on_meta(counts.BACKBONES["vit_b"], method)).encoder == count


def test_med_tuning_inserts_as_many_parameters_as_published_where_a_scan_has_128_slices():
    backbone = {**counts.BACKBONES["vit_b"], "image_size": 128 * 16}
    assert counts.count(on_meta(backbone, {"kind": "med_tuning"})).encoder == 2_845_696


def test_houlsby_adapts_what_attention_and_mlp_add():
    encoder, x = filled("houlsby")
    block = encoder.blocks[0]
    attended = block.attn.inner(block.norm1(x))
    y = x + attended + bottleneck(block.attn.adapter, attended, F.silu)
    added = block.mlp.inner(block.norm2(y))
    torch.testing.assert_close(block(x), y + added + bottleneck(block.mlp.adapter, added, F.silu))


def test_parallel_takes_what_the_mlp_takes():
    encoder, x = filled("parallel")
    mlp = encoder.blocks[0].mlp
    torch.testing.assert_close(mlp(x), mlp.inner(x) + 4 * bottleneck(mlp.adapter, x, F.relu))


def test_adaptformer_takes_tokens_that_are_not_normalised():
    encoder, x = filled("adaptformer")
    block = encoder.blocks[0]
    y = x + block.attn(block.norm1(x))
    expected = y + block.mlp.inner(block.norm2.inner(y)) + 0.1 * bottleneck(block.mlp.adapter, y, F.relu)
    torch.testing.assert_close(block(x), expected)


def test_adapter_plus_scales_each_channel_of_what_it_adds_to_a_blocks_output():
    encoder, x = filled("adapter_plus")
    block = encoder.blocks[0]
    y = block.inner(x)
    scale = block.adapter.scale.factor
    assert scale.shape == (48,)
    torch.testing.assert_close(block(x), y + scale * bottleneck(block.adapter, y, F.gelu))


def test_adapter_plus_skips_scans_in_training_only_and_keeps_the_expectation():
    drop = DropScans(0.5).train()
    dropped = drop(torch.ones(4000, 2, 3))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped == dropped[:, :1, :1]).all(), "a scan as a whole"
    assert abs(dropped.mean().item() - 1) < 0.1
    assert (drop.eval()(torch.ones(9, 2, 3)) == 1).all()


def test_adapter_bias_shifts_along_one_vector():
    encoder, x = filled("adapter_bias")
    mlp = encoder.blocks[0].mlp
    hidden = F.gelu(mlp.fc1(x))
    alpha = hidden @ mlp.fc2.adapter.amount.weight[0] + mlp.fc2.adapter.amount.bias
    shift = alpha[..., None] * mlp.fc2.adapter.vector.weight[:, 0]
    torch.testing.assert_close(mlp(x), mlp.fc2.inner(hidden) + shift)


def test_compacters_weights_are_sums_of_kronecker_products_of_shared_matrices():
    encoder, x = filled("compacter")
    for block in encoder.blocks:
        layer = block.attn.adapter.down
        terms = zip(encoder.compacter.matrices, layer.rows, layer.columns, strict=True)
        weight = sum(torch.kron(matrix, row @ column) for matrix, row, column in terms)
        torch.testing.assert_close(layer(x), x @ weight + layer.bias, atol=1e-4, rtol=1e-4)


def test_adapter_drop_leaves_the_first_blocks_as_they_are():
    trained = [n for n, p in filled("adapter_drop")[0].named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"1"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "adapter_drop"}, "left_out 5 leaves none of the backbone's 2 blocks"),
        ({"kind": "adapter_plus"}, "reduction 96 leaves nothing of a width of 48"),
        ({"kind": "compacter", "reduction": 8}, "no sum of 4 Kronecker products"),
    ],
)
def test_an_adapter_that_does_not_fit_the_backbone_is_refused(method, message):
    with pytest.raises(UserError, match=message):
        predictor(VIT, method)


def test_st_adapter_looks_along_the_first_axis_before_the_block():
    encoder, x = filled("st_adapter")
    block = encoder.blocks[0]
    low = block.adapter.down(x).view(2, 2, 4, 8)  # [B, first axis, the other places, m]
    conv = block.adapter.middle.convolution
    before, here, after = conv.weight[:, 0, :, 0, 0].unbind(1)
    first = here * low[:, 0] + after * low[:, 1]  # beyond the edge is nothing
    second = before * low[:, 0] + here * low[:, 1]
    added = block.adapter.up((torch.stack([first, second], 1) + conv.bias).view(2, 8, 8))
    torch.testing.assert_close(block(x), block.inner(x + added), atol=1e-4, rtol=1e-4)


def test_convpass_starts_with_a_convolution_that_changes_nothing():
    adapter = predictor(VIT, {"kind": "convpass"}).backbone.blocks[0].attn.adapter
    x = torch.randn(2, 8, 8)
    assert torch.equal(adapter.middle(x), x)


@pytest.mark.parametrize(
    ("depth", "ends"), [(12, [2, 5, 8, 11]), (6, [1, 2, 4, 5]), (2, [0, 1]), (1, [0])], ids=str
)
def test_med_tunings_stages_end_with_each_quarter_of_the_depth(depth, ends):
    shape = {"kind": "vit", "width": 48, "depth": depth, "heads": 4}
    (tuned,) = on_meta(shape, {"kind": "med_tuning"}).backbone.blocks
    assert [place for place, adapter in enumerate(tuned.adapters) if adapter.is_end] == ends
    assert len(tuned.inner) == depth


def test_med_tunings_spectrum_is_that_of_the_volume():
    encoder, _ = filled("med_tuning")
    features = encoder.blocks[0].adapters[0].features
    volume = torch.randn(2, 8, 2, 2, 2)
    nn.init.ones_(features.spectrum_weight)
    nn.init.zeros_(features.spectrum_bias)
    expected = features.fine(volume) + features.coarse(volume) + volume.abs()
    torch.testing.assert_close(features(volume), features.mix(expected), atol=1e-4, rtol=1e-4)


def test_med_tunings_stages_hand_their_features_on():
    encoder, x = filled("med_tuning")
    adapter = encoder.blocks[0].adapters[1]
    stage = torch.randn(2, 8, 2, 2, 2)
    low = F.gelu(adapter.down(x)).transpose(1, 2).reshape(2, 8, 2, 2, 2)
    fused = adapter.fuse(torch.cat([adapter.features(low), adapter.stage(stage)], 1))
    adapted, handed = adapter(x, stage)
    torch.testing.assert_close(handed, fused)
    expected = x + F.gelu(adapter.up((low + fused).flatten(2).transpose(1, 2)))
    torch.testing.assert_close(adapted, expected)
