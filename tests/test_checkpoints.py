import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import neuropeft
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import load_encoder, read_metadata, save_encoder, save_tensors
from neuropeft.cli import main
from neuropeft.errors import UserError
from neuropeft.pretraining.imported import import_encoder, import_monai

BACKBONE = {"kind": "vit", "width": 48, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}
MONAI = {
    "in_channels": 1,
    "img_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "mlp_dim": 192,
    "num_layers": 2,
}


def trained(module):
    """Stand in for training: no parameter keeps a value that another initialisation would also give."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def scans():
    return torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))


def test_an_encoder_file_restores_features_and_provenance(tmp_path, scans):
    encoder = trained(vit.build(BACKBONE))
    save_encoder(tmp_path / "encoder.safetensors", encoder, {"cohort": "simulated"})
    fresh = vit.build({**BACKBONE, "drop_path": 0.1}).eval()
    metadata = load_encoder(tmp_path / "encoder.safetensors", fresh)
    assert torch.equal(fresh(scans), encoder(scans))
    assert metadata["cohort"] == "simulated"
    assert '"width": 48' in metadata["architecture"]


@pytest.mark.parametrize(
    ("key", "value"), [("depth", 3), ("heads", 6), ("patch_size", 16), ("mlp_ratio", 2.0)]
)
def test_another_architecture_is_refused_by_its_key(tmp_path, key, value):
    save_encoder(tmp_path / "encoder.safetensors", vit.build(BACKBONE), {})
    with pytest.raises(UserError, match=key):
        load_encoder(tmp_path / "encoder.safetensors", vit.build({**BACKBONE, key: value}))


def test_weights_of_whole_scans_start_a_network_of_patches(tmp_path):
    whole, part = vit.build({**BACKBONE, "image_size": 48}), vit.build(BACKBONE)
    ramp = torch.arange(6.0).expand(48, 6, 6, 6)  # grows along the last axis, as the order of places has it
    whole.positions.copy_(ramp.flatten(1).T)
    trained(whole)
    save_encoder(tmp_path / "encoder.safetensors", whole, {})
    load_encoder(tmp_path / "encoder.safetensors", part)
    assert torch.equal(part.blocks[1].mlp.fc1.weight, whole.blocks[1].mlp.fc1.weight)
    found = part.positions.view(4, 4, 4, 48)
    torch.testing.assert_close(found[0, 3, :, 7], torch.tensor([0.25, 1.75, 3.25, 4.75]))
    assert (found == found[:1, :1]).all()
    report = import_encoder(tmp_path / "encoder.safetensors", tmp_path / "own.safetensors", part, {})
    assert report == ["positions of 216 places were interpolated to 64"]


def test_missing_and_unexpected_keys_are_listed(tmp_path):
    from safetensors.torch import save_file

    state = vit.build(BACKBONE).state_dict()
    state["norm.gamma"] = state.pop("norm.weight")
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"missing \['norm.weight'\], unexpected \['norm.gamma'\]"):
        load_encoder(tmp_path / "encoder.safetensors", vit.build(BACKBONE))


def test_a_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        load_encoder(tmp_path / "absent.safetensors", vit.build(BACKBONE))
    (tmp_path / "checkpoint.pt").write_bytes(b"text")
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        import_encoder(tmp_path / "checkpoint.pt", tmp_path / "e.safetensors", vit.build(BACKBONE), {})


@pytest.mark.parametrize("positions", ["sincos", "learnable"])
@pytest.mark.parametrize(("bias", "projection"), [(True, "conv"), (False, "perceptron")])
def test_features_of_a_monai_vit_survive_the_import(tmp_path, scans, positions, bias, projection):
    from monai.networks.nets import ViT

    theirs = trained(ViT(**MONAI, num_heads=4, pos_embed_type=positions, qkv_bias=bias, proj_type=projection))
    checkpoint = {"state_dict": {f"backbone.{name}": value for name, value in theirs.state_dict().items()}}
    torch.save(checkpoint, tmp_path / "monai.pt")
    ours = vit.build(BACKBONE).eval()
    report = import_encoder(tmp_path / "monai.pt", tmp_path / "encoder.safetensors", ours, {"from": "MONAI"})
    torch.testing.assert_close(ours(scans), theirs(scans)[0].mean(dim=1), atol=1e-5, rtol=1e-4)
    fresh = vit.build(BACKBONE).eval()
    metadata = load_encoder(tmp_path / "encoder.safetensors", fresh)
    assert torch.equal(fresh(scans), ours(scans))
    assert "norm_cross_attn" in metadata["import"]
    assert any("qkv.bias was absent" in line for line in report) != bias


def test_features_of_a_monai_autoencoder_survive_the_import(scans):
    from monai.networks.nets import MaskedAutoEncoderViT

    theirs = trained(MaskedAutoEncoderViT(**MONAI, num_heads=4, decoder_hidden_size=48, decoder_num_heads=4))
    state, report = import_monai(theirs.state_dict())
    ours = vit.build(BACKBONE).eval()
    ours.load_state_dict(state)
    without_class_token = theirs.blocks(theirs.patch_embedding(scans)).mean(dim=1)
    torch.testing.assert_close(ours(scans), without_class_token, atol=1e-5, rtol=1e-4)
    assert any("class token was dropped" in line for line in report)


def test_an_encoder_of_ours_is_taken_over_by_the_verb(scans, tmp_path):
    ours = vit.build(BACKBONE).eval()
    save_encoder(tmp_path / "ours.safetensors", ours, {"cohort": "UKB"})
    files = ["--weights", str(tmp_path / "ours.safetensors"), "--out", str(tmp_path / "out.safetensors")]
    assert main(["import-encoder", *files, "--backbone", json.dumps(BACKBONE)]) == 0
    fresh = vit.build(BACKBONE).eval()
    metadata = load_encoder(tmp_path / "out.safetensors", fresh)
    assert (metadata["cohort"], metadata["from"]) == ("UKB", "ours.safetensors"), "not where it lay"
    assert torch.equal(fresh(scans), ours(scans))


def test_our_positions_are_those_of_monai():
    from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding

    theirs = build_sincos_position_embedding([5, 5, 5], 48, 3).squeeze(0)
    torch.testing.assert_close(vit.build({**BACKBONE, "image_size": 40}).positions, theirs.data)


def test_a_checkpoint_of_another_image_size_says_that_it_is_interpolated(tmp_path):
    from monai.networks.nets import ViT

    theirs = ViT(**{**MONAI, "img_size": 48}, num_heads=4)
    torch.save(theirs.state_dict(), tmp_path / "monai.pt")
    report = import_encoder(tmp_path / "monai.pt", tmp_path / "e.safetensors", vit.build(BACKBONE), {})
    assert report[-1] == "positions of 216 places were interpolated to 64"


def test_a_checkpoint_that_is_no_monai_transformer_is_refused():
    with pytest.raises(UserError, match="patch_embeddings"):
        import_monai({"conv.weight": torch.zeros(1)})


def test_the_fine_tuning_path_imports_no_heavy_package():
    code = (
        "import sys, neuropeft.backbones.build, neuropeft.backbones.checkpoints, neuropeft.methods.counts\n"
        "heavy = {'monai', 'ants', 'nilearn', 'nibabel', 'pandas', 'matplotlib', 'sklearn', 'peft'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    package = Path(neuropeft.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(package)})


def test_the_same_weights_are_the_same_bytes(tmp_path):
    written = set()
    for _ in range(8):
        save_tensors(tmp_path / "weights", {"a": torch.ones(2)}, {f"key {i}": str(i) for i in range(9)})
        written.add((tmp_path / "weights").read_bytes())
    assert len(written) == 1
    assert read_metadata(tmp_path / "weights")["key 3"] == "3"
