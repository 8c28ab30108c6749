import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.models.build import build_predictor, build_vit
from neuropeft.models.vit3d import ViT3D, ViTConfig, patchify, sincos_positions, unpatchify

TINY = {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "patch_size": 16, "image_size": 32}


@pytest.fixture
def scans():
    return torch.randn(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def test_unpatchify_undoes_patchify(scans):
    patches = patchify(scans, 8)
    assert patches.shape == (3, 64, 512)
    assert torch.equal(unpatchify(patches, 8), scans)


def test_a_patch_is_a_cube_of_the_scan(scans):
    # The tokens run through the grid with the last axis fastest: place 1 * 16 + 2 * 4 + 3 is cube (1, 2, 3).
    cube = scans[0, 0, 8:16, 16:24, 24:32]
    assert torch.equal(patchify(scans, 8)[0, 16 + 8 + 3], cube.flatten())


def test_embedding_is_the_strided_convolution_plus_positions(scans):
    model = build_vit(TINY)
    expected = model.patch_embed(scans).flatten(2).transpose(1, 2) + model.positions
    torch.testing.assert_close(model.embed(scans), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [48, 384, 768])
def test_positions_are_distinct_and_bounded(width):
    positions = sincos_positions(5, width)
    assert positions.shape == (125, width)
    distances = torch.cdist(positions, positions) + torch.eye(125) * 1e9
    assert distances.min() > 0.1
    assert positions.abs().max() <= 1


def test_positions_are_not_parameters():
    model = build_vit(TINY)
    assert "positions" not in dict(model.named_parameters())
    assert "positions" in model.state_dict()


def test_features_are_the_mean_over_tokens(scans):
    model = build_vit(TINY).eval()
    tokens = model.encode(model.embed(scans))
    assert tokens.shape == (3, 8, 48)
    assert torch.equal(model(scans), tokens.mean(dim=1))


def test_a_subset_of_patches_embeds_as_in_the_whole(scans):
    model = build_vit(TINY)
    ids = torch.tensor([[7, 0, 3]] * 3)
    some = model.embed_patches(patchify(scans, 16)[:, [7, 0, 3]], ids)
    torch.testing.assert_close(some, model.embed(scans)[:, [7, 0, 3]])


def test_attention_is_softmax_attention_of_each_head(scans):
    attention = build_vit(TINY).blocks[0].attn
    x = torch.randn(2, 5, 48)
    q, k, v = attention.qkv(x).split(48, dim=-1)
    heads = []
    for i in range(4):
        part = slice(12 * i, 12 * (i + 1))
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 12**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)), atol=1e-5, rtol=1e-5)


def test_drop_path_only_in_training_and_keeps_the_expectation(scans):
    model = ViT3D(ViTConfig(48, 2, 4, patch_size=16, image_size=32, drop_path=0.5))
    model.eval()
    assert torch.equal(model(scans), model(scans))
    model.train()
    assert not torch.equal(model(scans), model(scans))
    assert [block.drop_path for block in model.blocks] == [0.0, 0.5]
    dropped = model.blocks[1]._drop(torch.ones(4000, 1, 1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean().item() - 1) < 0.1


def test_initialisation_is_that_of_mae():
    model = build_vit({**TINY, "width": 96})
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
        ({"width": 50, "heads": 5}, "width 50"),
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
        build_vit(TINY)(torch.zeros(1, 1, 16, 16, 16))


def test_autocast_keeps_features_close(scans):
    model = build_vit(TINY).eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(scans)
    torch.testing.assert_close(low.float(), model(scans), atol=0.05, rtol=0.05)
