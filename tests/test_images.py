"""Images go the way of volumes: fine-tuning of 2D backbones, and the masked autoencoder in 2D."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_cells
from neuropeft.backbones.build import build_backbone, build_predictor
from neuropeft.backbones.checkpoints import load_encoder
from neuropeft.backbones.patches import patchify, unpatchify
from neuropeft.backbones.vit_2d import ViT2D
from neuropeft.errors import UserError
from neuropeft.files import write_tsv
from neuropeft.methods.selective import Full
from neuropeft.pretraining.mae3d import MAE3D, build_mae
from neuropeft.train.pretrain import pretrain

EDGE = 36
VIT = {
    "kind": "vit_2d",
    "width": 24,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "patch_size": 6,
    "image_size": EDGE,
}
AUGMENT = {
    "rotate_deg": 5,
    "scale": 0.05,
    "translate_voxels": 1,
    "intensity": 0.05,
    "crop": 0.1,
    "colour": 0.1,
}


def sha1(image: np.ndarray) -> str:
    return hashlib.sha1(image.tobytes()).hexdigest()


def make_images(folder: Path, number: int = 24) -> Path:
    """Write images in colour whose centre is red or blue, by whether the subject's number is even."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.3, 0.7, size=(number, 3, EDGE, EDGE))
    for subject, image in enumerate(images):
        image[2 * (subject % 2), 9:-9, 9:-9] += 0.3
    folder.mkdir()
    stored = images.astype(np.float16)
    np.save(folder / "volumes.npy", stored)
    rows = [
        {
            "row": row,
            "scan_id": f"sub-{row:03d}",
            "subject": f"sub-{row:03d}",
            "session": "",
            "sha1": sha1(one),
        }
        for row, one in enumerate(stored)
    ]
    write_tsv(folder / "scans.tsv", rows, list(rows[0]))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_images(tmp_path / "store")


def settings(**changes: Any) -> dict[str, Any]:
    training = {"epochs": 6, "batch_size": 8, "warmup_epochs": 1, "augment": AUGMENT}
    return tiny_cells.cell(training=training, **changes)


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        (VIT, {"kind": "scratch"}),
        (VIT | {"features": "mean", "layer_scale": True}, tiny_cells.LORA),
        pytest.param(
            {"kind": "resnet50_2d", "image_size": EDGE},
            {"kind": "scratch", "lr": 1e-3},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["class token", "mean", "resnet50"],
)
def test_a_backbone_of_images_is_fine_tuned(store: Path, backbone: dict, method: dict) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    spec, out = settings(backbone=backbone, method={"lr": 1e-2} | method), store.parent / "out"
    tiny_cells.finetune(spec, store, split, None, out, store.parent / "state", 1e9)  # one checkpoint
    history = tiny_cells.read_history(out)
    assert float(history[-1]["train_loss"]) < 0.5 * float(history[0]["train_loss"])
    assert tiny_cells.read_cost(out)["flops_per_sample"] > 0
    if backbone["kind"] == "vit_2d":  # the running statistics of a CNN lag behind in so few steps
        assert float(history[-1]["val_metric"]) > 0.9


@pytest.fixture
def mae() -> MAE3D:
    torch.manual_seed(0)
    return build_mae(VIT, tiny_cells.DECODER, 0.75)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.rand(3, 36, generator=torch.Generator().manual_seed(2))


def test_a_patch_is_a_square_of_all_channels(images: torch.Tensor) -> None:
    patches = patchify(images, 6)
    assert torch.equal(patches[1, 6 + 2], images[1, :, 6:12, 12:18].flatten())
    assert torch.equal(unpatchify(patches, 6, 2), images)


def test_embedding_is_the_strided_convolution_plus_positions_after_the_class_token(
    images: torch.Tensor,
) -> None:
    model = build_backbone(VIT)
    assert isinstance(model, ViT2D)
    patches = model.patch_embed(model.prepared(images)).flatten(2).transpose(1, 2) + model.positions
    expected = torch.cat([model.class_token.expand(3, 1, -1), patches], dim=1)
    torch.testing.assert_close(model.embed(images), expected, atol=1e-5, rtol=1e-5)


def test_pixels_are_standardised_by_imagenet_or_as_set(images: torch.Tensor) -> None:
    model = build_backbone(VIT)
    expected = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(model.prepared(images), expected)
    torch.testing.assert_close(model.restored(expected), images)
    grey = build_backbone(VIT | {"channels": 1})
    assert [grey.standardise.values[key] for key in ("mean", "sd")] == [
        [pytest.approx(0.449)],
        [pytest.approx(0.226)],
    ]
    assert build_backbone(VIT | {"mean": [0, 0, 0], "sd": [1, 1, 1]}).architecture()["sd"] == [1, 1, 1]
    with pytest.raises(UserError, match="mean has 1 numbers for 3 channels"):
        build_backbone(VIT | {"mean": [0.5]})
    with pytest.raises(UserError, match=r"give \[batch, 3, 36, 36\]"):
        model(images[:, :1])


def test_learned_positions_and_the_class_token_have_no_weight_decay_and_learn_slowest() -> None:
    model = build_predictor(VIT, 1)
    names = {id(value): name for name, value in model.named_parameters()}
    settings = {"lr": 1.0, "head_lr": 1.0, "weight_decay": 0.1, "layer_decay": 0.5}
    found = {names[id(value)]: one for one in Full().groups(model, settings) for value in one["params"]}
    for name in ("class_token", "positions"):
        group = found[f"backbone.{name}"]
        assert (group["weight_decay"], group["lr"]) == (0.0, 0.25)


def test_features_of_no_class_token_are_refused() -> None:
    with pytest.raises(UserError, match="features: mean"):
        build_backbone(VIT | {"class_token": False})


def test_the_autoencoder_sees_the_visible_patches_and_the_class_token(
    mae: MAE3D, images: torch.Tensor, noise: torch.Tensor
) -> None:
    out = mae(images, noise)
    assert out.prediction.shape == (3, 27, 108)
    assert torch.equal(
        out.mask, ~torch.zeros(3, 36, dtype=torch.bool).scatter(1, noise.argsort(1)[:, :9], True)
    )
    changed = torch.where(out.mask[..., None], patchify(images, 6) + 5, patchify(images, 6))
    torch.testing.assert_close(mae(unpatchify(changed, 6, 2), noise).prediction, out.prediction)
    target = patchify(mae.encoder.prepared(images), 6)
    target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    hidden = target.gather(1, out.masked[..., None].expand_as(out.prediction))
    torch.testing.assert_close(out.loss, (out.prediction - hidden).square().mean())
    out.error.backward()
    assert all(value.grad is not None and value.grad.any() for value in mae.parameters())


def test_a_reconstruction_is_of_pixels_and_keeps_visible_patches(
    mae: MAE3D, images: torch.Tensor, noise: torch.Tensor
) -> None:
    class Perfect(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            target, _ = mae.targets(images)
            return target.gather(1, noise.argsort(dim=1)[:, 9:, None].expand(-1, -1, 108))

    picture, mask = mae.reconstruct(images, noise)
    assert torch.equal(picture[~mask], images[~mask])
    assert not torch.allclose(picture[mask], images[mask])
    mae.decoder_pred = Perfect()
    torch.testing.assert_close(mae.reconstruct(images, noise)[0], images, atol=1e-4, rtol=1e-4)


def test_an_encoder_is_pretrained_on_images_and_fine_tuned(store: Path) -> None:
    spec = tiny_cells.pretraining(backbone=VIT, steps=30, lr=5e-3, augment={"flip": True, "crop": 0.2})
    pretrain(spec, store, [], store.parent / "mae", store.parent / "state", device="cpu")
    history = tiny_cells.read_history(store.parent / "mae")
    assert float(history[-1]["val_loss"]) < float(history[0]["val_loss"])
    pictures = np.load(store.parent / "mae" / "reconstructions.npz")
    hidden = pictures["mask"].astype(bool)
    assert pictures["input"].shape == (4, EDGE, EDGE)
    assert hidden.mean() == pytest.approx(0.75)
    assert np.array_equal(pictures["input"][~hidden], pictures["reconstruction"][~hidden])
    encoder = store.parent / "mae" / "encoder.safetensors"
    load_encoder(encoder, build_backbone(VIT | {"features": "mean"}))  # which tokens are given is no matter
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    spec = settings(backbone=VIT, method=tiny_cells.LORA)
    tiny_cells.finetune(spec, store, split, encoder, store.parent / "out", store.parent / "state")
    assert float(tiny_cells.read_history(store.parent / "out")[-1]["val_loss"]) < 1
