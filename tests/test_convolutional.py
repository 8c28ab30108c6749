"""Methods for CNNs: what the suite of all methods does not see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinds import method_settings
from neuropeft.backbones.base import Backbone, FeatureSpec, InputSpec
from neuropeft.backbones.heads import Head, Predictor
from neuropeft.errors import UserError
from neuropeft.methods.adapt import adapt, delta_state, merge


class Small(Backbone):
    """A convolution of each kind, with a batch norm between."""

    SITES = {"conv": nn.Conv3d, "batchnorm": nn.BatchNorm3d}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.takes, self.gives = InputSpec(3, 1, 8), FeatureSpec(6, (4, 4, 4))
        self.first = nn.Conv3d(1, 4, 1)
        self.norm = nn.BatchNorm3d(4)
        self.second = nn.Conv3d(4, 6, 3, stride=2, padding=1, bias=False)

    def tokens(self, x):
        return self.second(self.norm(self.first(x)).relu()).flatten(2).transpose(1, 2)

    def architecture(self):
        return {"kind": "small"}


def small(**method):
    torch.manual_seed(0)
    model = Predictor(Small(), Head(6, 64, 2))
    if method:
        adapt(model, method_settings(method).model_dump(), torch.Generator().manual_seed(0))
    return model


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("adapts", [False, True])
def test_statistics_of_a_trained_batch_norm_move_only_where_that_is_wanted(adapts):
    model = small(kind="batchnorm", adapt_statistics=adapts)
    before = {name: value.clone() for name, value in model.backbone.norm.named_buffers()}
    model.train()
    for _ in range(2):
        model(noise(3, 1, 8, 8, 8)).sum().backward()
    assert model.backbone.norm.weight.grad.any()
    now = dict(model.backbone.norm.named_buffers())
    assert all(torch.equal(now[name], value) != adapts for name, value in before.items())
    assert ("backbone.norm.running_mean" in delta_state(model)) == adapts


@pytest.mark.parametrize("kind", ["ssf_conv", "lora_conv", "tsa", "series", "conv_adapter"])
def test_the_weights_that_a_method_wraps_are_no_part_of_the_delta(kind):
    model = small(kind=kind)
    assert not [name for name in delta_state(model) if "inner" in name]
    assert {name for name in model.state_dict() if name.endswith("second.inner.weight")}


@pytest.mark.parametrize("kind", ["ssf_conv", "lora_conv", "tsa", "series"])
def test_what_is_merged_is_a_plain_network_that_computes_the_same(kind):
    model = small(kind=kind).eval()
    for value in model.backbone.parameters():
        nn.init.normal_(value, std=0.5)
    for name, value in model.backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(value, 0.5, 1.5)
    expected = model(noise(2, 1, 8, 8, 8))
    assert merge(model)
    torch.testing.assert_close(model(noise(2, 1, 8, 8, 8)), expected, atol=1e-4, rtol=1e-4)
    assert {type(module) for _, module in model.backbone.named_children()} == {nn.Conv3d, nn.BatchNorm3d}


def test_tsa_starts_at_a_ten_thousandth_of_the_identity_beside_cubes_alone():
    plain, model = small().backbone, small(kind="tsa").backbone
    x = noise(2, 4, 8, 8, 8)
    added = torch.zeros(2, 6, 4, 4, 4)
    added[:, :4] = 1e-4 * x[:, :, ::2, ::2, ::2]
    torch.testing.assert_close(model.second(x), plain.second(x) + added)
    assert isinstance(model.first, nn.Conv3d)


def test_lora_of_a_convolution_is_that_of_its_unfolded_kernel():
    layer = small(kind="lora_conv", r=2, alpha=1).backbone.second
    nn.init.normal_(layer.b.weight)
    x = noise(2, 4, 8, 8, 8)
    update = 0.5 * layer.b.weight.view(6, 2) @ layer.a.weight.view(2, 4 * 27)
    expected = F.conv3d(x, layer.inner.weight + update.view(6, 4, 3, 3, 3), stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_series_adapter_standardises_each_channel_by_the_batch_in_training():
    layer = small(kind="series").backbone.second.train()
    nn.init.normal_(layer.mix.weight)
    y = layer.inner(noise(2, 4, 8, 8, 8))
    standard = y - y.mean((0, 2, 3, 4), keepdim=True)
    standard = standard / (y.var((0, 2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = y + torch.einsum("oc,bcdhw->bodhw", layer.mix.weight.flatten(1), standard)
    torch.testing.assert_close(layer(noise(2, 4, 8, 8, 8)), expected, atol=1e-4, rtol=1e-4)


def test_a_network_without_stages_has_no_last_one():
    with pytest.raises(UserError, match="Small does not provide stages"):
        small(kind="last_block")
