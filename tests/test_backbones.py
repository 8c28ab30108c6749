"""What every backbone must offer, and what single ones are."""

from typing import get_args

import pytest
import torch

from kinds import BACKBONES, SIZE, backbone_settings, label, predictor, scans, spec
from neuropeft import backbones
from neuropeft.backbones import vit
from neuropeft.backbones.build import build_backbone, build_predictor
from neuropeft.backbones.checkpoints import load_encoder, save_encoder
from neuropeft.backbones.decoders import UNetDecoder
from neuropeft.backbones.decoders import build_predictor as build_dense
from neuropeft.backbones.decoders_2d import UPerNet
from neuropeft.backbones.patches import patchify, sincos_positions, unpatchify
from neuropeft.backbones.vit import ViT3D, ViTConfig
from neuropeft.config.backbones import Backbone as Settings
from neuropeft.errors import UserError

WITHOUT_SITES = {"tokens", "tokens of whole scans", "tokens in 3D", "stages", "bias", "an importer"}


def test_the_table_and_the_settings_know_the_same_kinds_and_all_are_tested():
    settings = get_args(get_args(Settings)[0])
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in settings]
    assert set(kinds) == set(backbones.MODULES) == {one["kind"] for one in BACKBONES} | {"diffusion"}


@pytest.fixture(scope="module", params=BACKBONES, ids=label)
def settings(request):
    return request.param


@pytest.fixture(scope="module")
def network(settings):
    torch.manual_seed(0)
    return build_backbone(spec(settings)).eval()


def test_a_backbone_has_the_sites_that_its_settings_say_it_provides(network, settings):
    provides = backbone_settings(settings).provides
    assert set(network.SITES) == provides - WITHOUT_SITES
    for kind in network.SITES:
        sites = network.sites(kind)
        assert sites, kind
        assert all(getattr(site.owner, site.name) is site.module for site in sites)
    with pytest.raises(UserError, match="does not provide colour"):
        network.sites("colour")
    assert any(one.split(".")[-1] == "bias" for one, _ in network.named_parameters()) == ("bias" in provides)


def test_tokens_are_what_the_backbone_says_it_gives_and_features_their_mean(network):
    x = scans(takes=network.takes)
    with torch.no_grad():
        tokens = network.tokens(x)  # [B, N, width]
        assert tokens.shape == (2, network.gives.tokens, network.gives.width)
        assert torch.equal(network(x), tokens.mean(dim=1))
        assert torch.equal(network.tokens(x), tokens), "evaluated twice"


def test_a_decoder_on_its_maps_gives_logits_of_every_voxel_that_are_each_scans_own(network, settings):
    x = scans(takes=network.takes)
    maps = network.maps(x)
    assert [one.shape[1] for one in maps] == [one.width for one in network.gives_maps]
    assert maps[-1].shape[2:] == network.gives.grid
    edges = [one.shape[-1] for one in maps]
    assert edges == [-(-SIZE // one.stride) for one in network.gives_maps]
    for decoder in backbone_settings(settings).decoders:
        dense = build_dense(spec(settings), 3, decoder).eval()
        assert isinstance(dense.head, {"unet": UNetDecoder, "upernet": UPerNet}[decoder])
        logits = dense(x)
        assert logits.shape == (2, 3, *x.shape[2:])
        torch.testing.assert_close(dense(x[:1]), logits[:1], rtol=1e-3, atol=1e-4)
        logits.sum().backward()
        assert all(value.grad is not None for value in dense.head.parameters())


def test_a_backbone_takes_the_input_that_its_settings_say_it_needs(network, settings):
    channels = "one channel" if network.takes.channels == 1 else f"{network.takes.channels} channels"
    assert backbone_settings(settings).needs == {f"{network.takes.dims}D", channels}


def test_a_backbone_can_be_cut_between_its_layers(network):
    x = scans(takes=network.takes)
    with torch.no_grad():
        for layers in range(1, network.layer_count + 1):
            assert torch.equal(network.above(network.below(x, layers), layers), network.tokens(x))


def test_an_encoder_file_restores_features_and_fits_no_other_kind(network, settings, tmp_path):
    save_encoder(tmp_path / "encoder.safetensors", network, {})
    fresh = build_backbone(spec(settings)).eval()
    load_encoder(tmp_path / "encoder.safetensors", fresh)
    x = scans(takes=network.takes)
    with torch.no_grad():
        assert torch.equal(fresh(x), network(x))
    other = next(one for one in BACKBONES if one["kind"] != settings["kind"])
    with pytest.raises(UserError, match=rf"kind {settings['kind']} for {other['kind']}"):
        load_encoder(tmp_path / "encoder.safetensors", build_backbone(spec(other)))


TINY = {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "patch_size": 16, "image_size": 32}


def test_unpatchify_undoes_patchify():
    patches = patchify(scans(), 8)
    assert patches.shape == (2, 64, 512)
    assert torch.equal(unpatchify(patches, 8), scans())


def test_a_patch_is_a_cube_of_the_scan():
    # The tokens run through the grid with the last axis fastest: place 1 * 16 + 2 * 4 + 3 is cube (1, 2, 3).
    cube = scans()[0, 0, 8:16, 16:24, 24:32]
    assert torch.equal(patchify(scans(), 8)[0, 16 + 8 + 3], cube.flatten())


def test_embedding_is_the_strided_convolution_plus_positions():
    model = vit.build(TINY)
    expected = model.patch_embed(scans()).flatten(2).transpose(1, 2) + model.positions
    torch.testing.assert_close(model.embed(scans()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [48, 384, 768, 1024])
def test_positions_are_distinct_and_bounded(width):
    positions = sincos_positions(5, width)
    assert positions.shape == (125, width)
    distances = torch.cdist(positions, positions) + torch.eye(125) * 1e9
    assert distances.min() > 0.1
    assert positions.abs().max() <= 1


def test_positions_are_not_parameters():
    model = vit.build(TINY)
    assert "positions" not in dict(model.named_parameters())
    assert "positions" in model.state_dict()


def test_features_are_the_mean_over_tokens():
    model = vit.build(TINY).eval()
    tokens = model.encode(model.embed(scans()))
    assert tokens.shape == (2, 8, 48)
    assert torch.equal(model(scans()), tokens.mean(dim=1))


def test_a_subset_of_patches_embeds_as_in_the_whole():
    model = vit.build(TINY)
    ids = torch.tensor([[7, 0, 3]] * 2)
    some = model.embed_patches(patchify(scans(), 16)[:, [7, 0, 3]], ids)
    torch.testing.assert_close(some, model.embed(scans())[:, [7, 0, 3]])


def test_attention_is_softmax_attention_of_each_head():
    attention = vit.build(TINY).blocks[0].attn
    x = torch.randn(2, 5, 48)
    q, k, v = attention.qkv(x).split(48, dim=-1)
    heads = []
    for i in range(4):
        part = slice(12 * i, 12 * (i + 1))
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 12**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)), atol=1e-5, rtol=1e-5)


def test_drop_path_only_in_training_and_keeps_the_expectation():
    model = ViT3D(ViTConfig(48, 2, 4, patch_size=16, image_size=32, drop_path=0.5))
    model.eval()
    assert torch.equal(model(scans()), model(scans()))
    model.train()
    assert not torch.equal(model(scans()), model(scans()))
    assert [block.drop_path for block in model.blocks] == [0.0, 0.5]
    dropped = model.blocks[1]._drop(torch.ones(4000, 1, 1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean().item() - 1) < 0.1


def test_initialisation_is_that_of_mae():
    model = vit.build({**TINY, "width": 96})
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            bound = (6 / (value.shape[0] + value[0].numel())) ** 0.5
            assert 0.9 * bound < value.abs().max() <= bound, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 30}, "image_size 30"),
        ({"width": 4}, "width 4"),
        ({"heads": 5}, "5 heads"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"colour": 1}, "colour"),
        ({"kind": "resnet"}, "resnet"),
    ],
)
def test_a_shape_that_cannot_be_built_names_its_key(change, words):
    with pytest.raises(UserError, match=words):
        build_predictor({**TINY, **change}, 1)


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(UserError, match="image_size"):
        vit.build(TINY)(torch.zeros(1, 1, 16, 16, 16))


def test_autocast_keeps_features_close():
    model = vit.build(TINY).eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(scans())
    torch.testing.assert_close(low.float(), model(scans()), atol=0.05, rtol=0.05)


SLICES = next(one for one in BACKBONES if one["kind"] == "vit_slices")


def test_a_slice_is_an_image_of_the_last_axis_that_meets_no_other_slice():
    model = build_backbone(spec(SLICES)).eval()
    flat = {"kind": "vit_2d", "class_token": False, "features": "mean", "mean": [0.0] * 2, "sd": [1.0] * 2}
    image = build_backbone({**spec(SLICES), **flat}).eval()
    image.load_state_dict(model.state_dict())
    x = scans(takes=model.takes)
    with torch.no_grad():
        tokens = model.tokens(x).unflatten(1, (32, 4))  # [B, slices, places, width]
        torch.testing.assert_close(tokens[:, 7], image.tokens(x[..., 7]))


@pytest.mark.parametrize(("kind", "joins"), [("st_adapter", True), ("med_tuning", True), ("convpass", False)])
def test_methods_in_3d_join_slices_and_those_in_2d_do_not(kind, joins):
    model = predictor(SLICES, {"kind": kind}).eval()
    for value in model.backbone.parameters():
        if value.requires_grad:  # of what is zero at the start, nothing is seen
            torch.nn.init.normal_(value, std=0.3)
    x = scans(1, model.backbone.takes)
    other = x.clone()
    other[..., 7] += 1
    with torch.no_grad():
        changed = model.backbone.tokens(x) != model.backbone.tokens(other)
    slices = changed.unflatten(1, (32, 4)).any(dim=(0, 2, 3)).nonzero().flatten().tolist()
    assert 7 in slices
    assert (len(slices) > 1) == joins


def test_densenet_is_monais_with_the_head_apart():
    from monai.networks.nets import DenseNet121

    model = build_predictor({"kind": "densenet121"}, 1).eval()
    theirs = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1).eval()
    theirs.features.load_state_dict(model.backbone.features.state_dict())
    theirs.class_layers.out.load_state_dict(model.head.linear.state_dict())
    x = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(model(x), theirs(x))
