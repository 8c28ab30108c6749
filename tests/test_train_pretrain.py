import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from neuropeft.models.build import build_mae, build_vit
from neuropeft.models.checkpoints import load_encoder
from neuropeft.models.mae3d import MAE3D
from neuropeft.train import checkpoint
from neuropeft.train import pretrain as pretraining
from neuropeft.train.augment import Augmentation
from neuropeft.train.loop import Plan
from neuropeft.train.pretrain import _scans, pretrain
from neuropeft.train.signals import REQUEUE_EXIT_CODE


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cells.make_store(tmp_path / "store")


def test_writes_an_encoder_its_curve_its_cost_and_pictures(store: Path) -> None:
    out = store.parent / "out"
    state = store.parent / "state"
    pretrain(tiny_cells.pretraining(epochs=12), store, [], out, state, device="cpu", checkpoint_seconds=0)
    history = tiny_cells.read_history(out)
    assert list(history[0]) == ["epoch", "lr", "train_loss", "val_loss", "accumulation"]
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"]) - 0.1
    assert float(history[-1]["val_loss"]) < float(history[0]["val_loss"]) - 0.1
    cost = tiny_cells.read_cost(out)
    assert (cost["train_scans"], cost["validation_scans"], cost["processes"]) == (19, 5, 1)
    encoder = build_vit(tiny_cells.BACKBONE)
    assert cost["encoder"] == sum(value.numel() for value in encoder.parameters())
    assert load_encoder(out / "encoder.safetensors", encoder)["pretraining"] == "mae"
    pictures = np.load(out / "reconstructions.npz")
    shape = (4, *[tiny_cells.EDGE] * 3)
    assert {name: pictures[name].shape for name in ("input", "mask", "reconstruction")} == dict.fromkeys(
        ("input", "mask", "reconstruction"), shape
    )
    hidden = pictures["mask"].astype(bool)
    assert hidden.mean() == pytest.approx(21 / 27)  # int(27 * 0.25) patches are visible
    assert np.array_equal(pictures["input"][~hidden], pictures["reconstruction"][~hidden])
    assert {path.name for path in state.iterdir()} == {"finished", "lock"}, "the checkpoint is done with"


def given_to_fit(store: Path, splits: list[Path], **changes) -> dict:
    paths = (store, splits, store.parent / "out", store.parent / "state", "cpu")
    return tiny_cells.given_to_fit("pretrain", pretrain, tiny_cells.pretraining(**changes), *paths)


def test_the_settings_reach_the_training(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a value that no other setting and no default has."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    decoder = {"width": 36, "depth": 3, "heads": 6}
    plan = {"epochs": 9, "batch_size": 4, "warmup_epochs": 2, "clip": 0.5, "seed": 6}
    rates = {"lr": 1e-5, "weight_decay": 0.3, "betas": [0.7, 0.8]}
    given = given_to_fit(store, [], decoder=decoder, mask_ratio=0.5, compile=True, **plan, **rates)
    assert given["plan"] == Plan(name="pretraining", samples=19, **plan)
    assert given["betas"] == (0.7, 0.8)
    for group, decay in zip(given["groups"], (0.3, 0.0), strict=True):
        assert (group["lr"], group["weight_decay"]) == (1e-5, decay)
        assert {value.ndim > 1 for value in group["params"]} == {decay > 0}, "biases and norms do not decay"
    model, like = given["learner"].module, build_mae(tiny_cells.BACKBONE, decoder, 0.5)
    assert str(model) == str(like)
    assert model.visible == like.visible
    assert compiled == [model]
    given_to_fit(store, [])
    assert len(compiled) == 1


def test_every_step_changes_and_masks_its_scans_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, masks, forward = [], [], MAE3D.forward

    def changing(scans, changes, seed, place):
        changed.append((changes, seed, place))
        return scans

    def masking(model, scans, noise):
        masks.append(tuple(model.mask(noise).flatten().tolist()))
        return forward(model, scans, noise)

    monkeypatch.setattr(pretraining, "augment", changing)
    monkeypatch.setattr(MAE3D, "forward", masking)
    learner = given_to_fit(store, [], seed=6)["learner"]
    steps = [(0, 0), (0, 1), (1, 0)]
    for epoch, step in steps:
        next(learner.batch_losses(torch.arange(4), epoch, step, 1))
    augmentation = Augmentation(flip=True, translate_voxels=1, noise=0.1)
    assert changed == [(augmentation, 6, place) for place in steps]
    assert len(set(masks)) == 3
    with torch.inference_mode():
        for _ in range(2):
            learner.validate()
    assert len(changed) == 3, "validated as they are"
    assert len(set(masks[3:])) == 1, "epochs are compared on the same masks"


def test_whatever_it_depends_on_trains_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(*splits: Path, **changes) -> str:
        return given_to_fit(store, list(splits), **changes)["home"].fingerprint

    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, test=5)
    seen = [fingerprint(), fingerprint(lr=1e-4), fingerprint(split)]
    tiny_cells.make_store(store)  # packed again, just the same
    assert fingerprint() == seen[0]
    tiny_cells.make_store(store, seed=1)  # the same scans, preprocessed otherwise
    seen.append(fingerprint())
    monkeypatch.setattr(pretraining, "code_digest", lambda module: "of other code")
    seen.append(fingerprint())
    assert len(set(seen)) == 5


@pytest.mark.parametrize("parts", [1, 2])
def test_autocast_is_for_the_forward_pass_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(pretraining, "_autocast", lambda setting: torch.autocast("cpu", dtype=torch.bfloat16))
    forward, inside = MAE3D.forward, []
    monkeypatch.setattr(
        MAE3D, "forward", lambda *given: inside.append(torch.is_autocast_enabled("cpu")) or forward(*given)
    )
    learner = given_to_fit(store, [])["learner"]
    for _ in learner.batch_losses(torch.arange(4), 0, 0, parts):
        assert not torch.is_autocast_enabled("cpu"), "the backward pass runs here"
    assert inside == [True] * parts


def test_a_signal_while_it_still_loads_is_not_lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = pretraining.load_volumes

    def told_to_stop(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return load(*arguments)

    monkeypatch.setattr(pretraining, "load_volumes", told_to_stop)
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("it would have died of it"))
    try:
        with pytest.raises(SystemExit) as left:
            pretrain(tiny_cells.pretraining(), store, [], store.parent / "out", store.parent / "state", "cpu")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert left.value.code == REQUEUE_EXIT_CODE
    assert (store.parent / "state" / checkpoint.NEWEST).exists()


def test_test_subjects_of_the_cohorts_tasks_are_left_out(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, test=5)
    tested = {row["subject"] for row in read_tsv(split) if row["side"] == "test"}
    train, validation = _scans(tiny_cells.pretraining(), store, [split])
    assert len(tested) == 5
    assert len(train) + len(validation) == 24 - 5
    assert not tested & {row["subject"] for row in (*train, *validation)}


def test_whole_subjects_validate(tmp_path: Path) -> None:
    store = tiny_cells.make_store(tmp_path / "store", sessions=3)
    train, validation = _scans(tiny_cells.pretraining(), store, [])
    sides = [{row["subject"] for row in rows} for rows in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2
    assert len(validation) == 6


def test_too_few_subjects_are_refused(tmp_path: Path) -> None:
    store = tiny_cells.make_store(tmp_path / "store", scans=1)
    with pytest.raises(UserError, match="too few to pretrain"):
        pretrain(tiny_cells.pretraining(), store, [], tmp_path / "out", tmp_path / "state", device="cpu")
