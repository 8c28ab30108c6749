import itertools
import os
import signal
from pathlib import Path

import pytest
import torch

import tiny_cells
from neuropeft import numerics
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import read_tensors, save_encoder
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.pretraining.mae3d import MAE3D, build_mae
from neuropeft.train import checkpoint, pretraining_run
from neuropeft.train import pretrain as pretraining
from neuropeft.train.augment import Augmentation
from neuropeft.train.learner import Plan
from neuropeft.train.pretrain import pretrain
from neuropeft.train.pretraining_run import Run
from neuropeft.train.signals import REQUEUE_EXIT_CODE
from neuropeft.train.sources import pretraining_scans


def given_to_fit(
    store: Path, splits: list[Path], people: Path | None = None, start: Path | None = None, **changes
) -> dict:
    paths, named = (
        (store, splits, store.parent / "out", store.parent / "state"),
        {"people": people, "start": start},
    )
    spec = tiny_cells.pretraining(**changes)
    return tiny_cells.given_to_fit("pretrain", pretrain, spec, *paths, **named, device="cpu")


def test_encoders_part_of_the_way_are_kept(store: Path) -> None:
    out = store.parent / "out"
    pretrain(tiny_cells.pretraining(steps=20), store, [], out, store.parent / "state", device="cpu")
    files = [f"encoder-{percent}.safetensors" for percent in (10, 25, 50)] + ["encoder.safetensors"]
    states, told = zip(*(read_tensors(out / name) for name in files), strict=True)
    assert [metadata["steps"] for metadata in told] == ["2", "5", "10", "20"]
    weights = [state["patch_embed.weight"] for state in states]
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(weights))


def test_the_settings_reach_the_training(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a value that no other setting and no default has."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    decoder = {"width": 36, "depth": 3, "heads": 6}
    plan = {"steps": 101, "batch_size": 4, "warmup_steps": 2, "clip": 0.5, "seed": 6}
    rates = {"lr": 1e-5, "weight_decay": 0.3, "betas": [0.7, 0.8]}
    given = given_to_fit(store, [], decoder=decoder, mask_ratio=0.5, compile=True, **plan, **rates)
    assert given["plan"] == Plan(name="pretraining", samples=19, interval=5, lr=1e-5, **plan)
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

    def changing(scans, changes, seed, step, first, total):
        changed.append((changes, seed, step, first, total))
        return scans

    def masking(model, scans, noise):
        masks.append(tuple(model.mask(noise).flatten().tolist()))
        return forward(model, scans, noise)

    monkeypatch.setattr(pretraining_run, "augment", changing)
    monkeypatch.setattr(MAE3D, "forward", masking)
    learner = given_to_fit(store, [], seed=6)["learner"]
    for step in range(3):
        tiny_cells.passed(learner, torch.arange(4), step)
    augmentation = Augmentation(flip=True, translate_voxels=1, noise=0.1)
    assert changed == [(augmentation, 6, step, 0, 4) for step in range(3)]
    assert len(set(masks)) == 3
    with torch.inference_mode():
        for _ in range(2):
            learner.validate()
    assert len(changed) == 3, "validated as they are"
    assert len(set(masks[3:])) == 1, "validations are compared on the same masks"


def test_whatever_it_depends_on_trains_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(*splits: Path, **changes) -> str:
        return given_to_fit(store, list(splits), **changes)["state"].fingerprint

    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, test=5)
    start = store.parent / "start.safetensors"
    save_encoder(start, vit.build(tiny_cells.BACKBONE), {})
    seen = [fingerprint(), fingerprint(lr=1e-4), fingerprint(split), fingerprint(start=start)]
    seen.append(fingerprint(mask="foreground"))
    tiny_cells.make_store(store)  # packed again, just the same
    assert fingerprint() == seen[0]
    tiny_cells.make_store(store, seed=1)  # the same scans, preprocessed otherwise
    seen.append(fingerprint())
    monkeypatch.setattr(numerics, "version", lambda *modules: "of other code")
    seen.append(fingerprint())
    assert len(set(seen)) == 7


def test_autocast_is_for_the_forward_pass(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "autocast", lambda run: torch.autocast("cpu", dtype=torch.bfloat16))
    forward, inside = MAE3D.forward, []
    monkeypatch.setattr(
        MAE3D, "forward", lambda *given: inside.append(torch.is_autocast_enabled("cpu")) or forward(*given)
    )
    learner = given_to_fit(store, [])["learner"]
    tiny_cells.passed(learner, torch.arange(4))
    assert inside == [True]


def test_a_signal_while_it_still_loads_is_not_lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = pretraining.load_volumes

    def told_to_stop(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return load(*arguments)

    monkeypatch.setattr(pretraining, "load_volumes", told_to_stop)
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("it would have died of it"))
    paths = (store.parent / "out", store.parent / "state")
    try:
        with pytest.raises(SystemExit) as left:
            pretrain(tiny_cells.pretraining(), store, [], *paths, device="cpu")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert left.value.code == REQUEUE_EXIT_CODE
    assert (store.parent / "state" / checkpoint.NEWEST).exists()


def test_whole_subjects_validate(tmp_path: Path) -> None:
    store = tiny_cells.make_store(tmp_path / "store", sessions=3)
    train, validation = pretraining_scans(tiny_cells.pretraining(), store / "scans.tsv", [])
    sides = [{row["subject"] for row in rows} for rows in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2
    assert len(validation) == 6


def test_too_few_subjects_are_refused(tmp_path: Path) -> None:
    store = tiny_cells.make_store(tmp_path / "store", scans=1)
    with pytest.raises(UserError, match="too few to pretrain"):
        pretrain(tiny_cells.pretraining(), store, [], tmp_path / "out", tmp_path / "state", device="cpu")


def test_ages_and_sexes_are_probed_for_where_they_are_known(store: Path) -> None:
    scans, people = read_tsv(store / "scans.tsv"), store.parent / "people.tsv"
    rows = [{"scan_id": row["scan_id"], "age": 50 + i, "sex": "FM"[i % 2]} for i, row in enumerate(scans)]
    out = store.parent / "out"
    for known, probed in ((24, {"probe_age", "probe_sex"}), (19, set())):
        write_tsv(people, rows[:known], ["scan_id", "age", "sex"])
        learner = given_to_fit(store, [], people=people)["learner"]
        with torch.inference_mode():
            found = learner.validate()
        assert {name for name in found if name.startswith("probe_")} == probed
    write_tsv(people, rows, ["scan_id", "age", "sex"])
    pretrain(tiny_cells.pretraining(), store, [], out, store.parent / "state", people=people, device="cpu")
    last, cost = tiny_cells.read_history(out)[-1], tiny_cells.read_cost(out)
    assert cost["probe_age"] == float(last["probe_age"])
    assert "probe_sex" in last
