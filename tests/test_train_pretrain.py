import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny_cells
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import load_encoder, read_tensors, save_encoder
from neuropeft.backbones.vit import patchify
from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, MAPS
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.pretraining.factors import FactorReader
from neuropeft.pretraining.mae3d import MAE3D, build_mae
from neuropeft.store import open_store
from neuropeft.train import checkpoint, pretraining_run, sources
from neuropeft.train import factors as factors_learner
from neuropeft.train import pretrain as pretraining
from neuropeft.train.augment import Augmentation
from neuropeft.train.data import generator
from neuropeft.train.loop import Plan
from neuropeft.train.pretrain import _verdict, pretrain
from neuropeft.train.pretraining_run import Run
from neuropeft.train.signals import REQUEUE_EXIT_CODE
from neuropeft.train.sources import pretraining_scans


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cells.make_store(tmp_path / "store")


def test_writes_an_encoder_its_curve_its_cost_and_pictures(store: Path) -> None:
    out = store.parent / "out"
    state = store.parent / "state"
    pretrain(tiny_cells.pretraining(steps=36), store, [], out, state, device="cpu", checkpoint_seconds=0)
    history = tiny_cells.read_history(out)
    assert list(history[0]) == [
        "step", "lr", "train_loss", "val_loss", "template_loss", "participation_ratio", "accumulation",
    ]  # fmt: skip
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"]) - 0.1
    assert float(history[-1]["val_loss"]) < float(history[0]["val_loss"]) - 0.1
    cost = tiny_cells.read_cost(out)
    assert (cost["train_scans"], cost["validation_scans"], cost["processes"]) == (19, 5, 1)
    assert (cost["steps"], cost["val_loss"]) == (36, float(history[-1]["val_loss"]))
    assert cost["beats_template"] == (cost["val_loss"] < cost["template_loss"])
    encoder = vit.build(tiny_cells.BACKBONE)
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


def given_to_fit(
    store: Path, splits: list[Path], people: Path | None = None, start: Path | None = None, **changes
) -> dict:
    paths, named = (
        (store, splits, store.parent / "out", store.parent / "state"),
        {"people": people, "start": start},
    )
    spec = tiny_cells.pretraining(**changes)
    return tiny_cells.given_to_fit("pretrain", pretrain, spec, *paths, **named, device="cpu")


def test_the_settings_reach_the_training(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a value that no other setting and no default has."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    decoder = {"width": 36, "depth": 3, "heads": 6}
    plan = {"steps": 101, "batch_size": 4, "warmup_steps": 2, "clip": 0.5, "seed": 6}
    rates = {"lr": 1e-5, "weight_decay": 0.3, "betas": [0.7, 0.8]}
    given = given_to_fit(store, [], decoder=decoder, mask_ratio=0.5, compile=True, **plan, **rates)
    assert given["plan"] == Plan(name="pretraining", samples=19, interval=5, **plan)
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
        next(learner.batch_losses(torch.arange(4), step, 1))
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
        return given_to_fit(store, list(splits), **changes)["home"].fingerprint

    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, test=5)
    start = store.parent / "start.safetensors"
    save_encoder(start, vit.build(tiny_cells.BACKBONE), {})
    seen = [fingerprint(), fingerprint(lr=1e-4), fingerprint(split), fingerprint(start=start)]
    seen.append(fingerprint(mask="foreground"))
    tiny_cells.make_store(store)  # packed again, just the same
    assert fingerprint() == seen[0]
    tiny_cells.make_store(store, seed=1)  # the same scans, preprocessed otherwise
    seen.append(fingerprint())
    monkeypatch.setattr(sources, "code_version", lambda *modules: "of other code")
    seen.append(fingerprint())
    assert len(set(seen)) == 7


@pytest.mark.parametrize("parts", [1, 2])
def test_autocast_is_for_the_forward_pass_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    monkeypatch.setattr(Run, "autocast", lambda run: torch.autocast("cpu", dtype=torch.bfloat16))
    forward, inside = MAE3D.forward, []
    monkeypatch.setattr(
        MAE3D, "forward", lambda *given: inside.append(torch.is_autocast_enabled("cpu")) or forward(*given)
    )
    learner = given_to_fit(store, [])["learner"]
    for _ in learner.batch_losses(torch.arange(4), 0, parts):
        assert not torch.is_autocast_enabled("cpu"), "the backward pass runs here"
    assert inside == [True] * parts


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


def test_test_subjects_of_the_cohorts_tasks_are_left_out(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, test=5)
    tested = {row["subject"] for row in read_tsv(split) if row["side"] == "test"}
    train, validation = pretraining_scans(tiny_cells.pretraining(), store / "scans.tsv", [split])
    assert len(tested) == 5
    assert len(train) + len(validation) == 24 - 5
    assert not tested & {row["subject"] for row in (*train, *validation)}


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


# -- what it looks at --------------------------------------------------------------------------------


def brute_template_loss(store: Path, spec: dict, brain: list[int]) -> float:
    """Return the loss of predicting mean patches, patch by patch, where only the places `brain` are used."""
    opened = open_store(store)
    patches = []
    for rows in pretraining_scans(spec, store / "scans.tsv", []):
        places = [opened.index_of(row["scan_id"]) for row in rows]
        volumes = torch.from_numpy(opened.volumes[places].astype(np.float32))[:, None]
        patches.append(patchify(volumes, tiny_cells.BACKBONE["patch_size"]).numpy().astype(float))
    train, validation = patches
    draws = torch.rand(len(validation), 27, generator=generator(torch.device("cpu"), 0, "validation mask"))

    def normalised(patch: np.ndarray) -> np.ndarray | None:
        deviation = patch.std(ddof=1)
        return (patch - patch.mean()) / deviation if deviation > 1e-2 else None

    visible = int(len(brain) * (1 - spec["mask_ratio"]))
    errors = []
    for scan, noise in zip(validation, draws, strict=True):
        hidden = sorted(brain, key=lambda place: float(noise[place]))[visible:]
        for place in hidden:
            target = normalised(scan[place])
            seen = [found for one in train if (found := normalised(one[place])) is not None]
            if target is not None:
                errors.append(((target - np.mean(seen, axis=0)) ** 2).mean())
    return float(np.mean(errors))


@pytest.mark.parametrize("mask", ["all", "foreground"])
def test_the_template_loss_is_that_of_mean_patches(store: Path, mask: str) -> None:
    """Of scans of which a third has much background, and that share a pattern."""
    volumes = np.load(store / "volumes.npy")
    pattern = np.random.default_rng(5).normal(size=volumes.shape[1:])
    volumes[:] = np.where(volumes == -1, -1, volumes + pattern)
    volumes[:21, :, :4] = -1  # background of most scans: a third of the places
    np.save(store / "volumes.npy", volumes)
    background = [place for place in range(27) if place // 3 % 3 == 0]
    brain = [place for place in range(27) if mask == "all" or place not in background]
    spec = tiny_cells.pretraining(mask=mask)
    learner = given_to_fit(store, [], mask=mask)["learner"]
    assert learner.module.foreground.nonzero().flatten().tolist() == brain
    with torch.inference_mode():
        found = learner.validate()["template_loss"]
    assert found == pytest.approx(brute_template_loss(store, spec, brain), rel=1e-4)


def test_an_encoder_that_knows_the_template_alone_is_told(store: Path, capsys) -> None:
    out = store.parent / "out"
    spec = tiny_cells.pretraining(steps=2, warmup_steps=1)
    pretrain(spec, store, [], out, store.parent / "state", device="cpu")
    cost = tiny_cells.read_cost(out)
    assert cost["beats_template"] is False
    said = capsys.readouterr().err
    assert f"pretraining: its validation loss, {cost['val_loss']:.3g}, is not below" in said
    row = {"step": 1, "val_loss": 0.5, "template_loss": 0.6, "seconds": 1}
    assert _verdict([row]) == {"val_loss": 0.5, "template_loss": 0.6, "beats_template": True}
    assert _verdict([{"step": 1, "val_loss": 0.5}]) == {"val_loss": 0.5}
    assert not capsys.readouterr().err


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


@pytest.mark.parametrize("kind", ["mae", "factors"])
def test_it_starts_from_another_pretrainings_encoder(store: Path, kind: str) -> None:
    add_anatomy(store)
    torch.manual_seed(7)
    encoder, start = vit.build(tiny_cells.BACKBONE), store.parent / "start.safetensors"
    save_encoder(start, encoder, {})
    own, other = (given_to_fit(store, [], start=s, kind=kind)["learner"].module for s in (None, start))
    found = [dict(module.encoder.named_parameters()) for module in (own, other)]
    for name, value in encoder.named_parameters():
        assert torch.equal(found[1][name], value), name
    assert not torch.equal(found[0]["patch_embed.weight"], found[1]["patch_embed.weight"])


# -- reading synthetic anatomy -----------------------------------------------------------------------


def add_anatomy(store: Path, seed: int = 0) -> None:
    """Make a store synthetic: each patch shows how much of each tissue it holds, by a texture of its own."""
    rows, rng = read_tsv(store / "scans.tsv"), np.random.default_rng(seed)
    tissue = rng.uniform(0, 1, size=(len(rows), 3, 3, 3, 3))
    tissue[:, :, 0, 0, 0] = 0.2  # a place that is alike in all brains
    moved = 3 * tissue[:, ::-1]  # displacements, which follow from tissue here
    textures = rng.normal(size=(3, 4, 4, 4))
    # [scans, 3, 3, 3, 4, 4, 4] -> [scans, 12, 12, 12]
    painted = np.einsum("ntxyz,tabc->nxaybzc", tissue, textures).reshape(len(rows), 12, 12, 12)
    np.save(store / "volumes.npy", painted.astype(np.float16))
    for name, values in zip(MAPS, (tissue, moved), strict=True):
        np.save(store / name, values.astype(np.float16))
    mean = tissue.mean(axis=(2, 3, 4))
    known = [
        {**row, **{name: mean[i, j % 3] for j, name in enumerate(ANATOMY_FACTORS)}}
        for i, row in enumerate(rows)
    ]
    write_tsv(store / "scans.tsv", known, list(known[0]))


def test_a_reader_of_anatomy_learns_maps_and_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "VALIDATIONS", 4)  # probes take their time
    store = tiny_cells.make_store(tmp_path / "store", scans=120)
    add_anatomy(store)
    spec = tiny_cells.pretraining(
        kind="factors", steps=200, warmup_steps=20, batch_size=16, lr=5e-3, augment={}
    )
    out = tmp_path / "out"
    pretrain(spec, store, [], out, tmp_path / "state", device="cpu")
    names = {"encoder.safetensors", "history.csv", "cost.json"}
    assert {path.name for path in out.iterdir()} == names | {"encoder.safetensors.json"}
    *_, last = tiny_cells.read_history(out)
    assert float(last["val_maps"]) < 0.3, "1 is the loss of the mean of each place"
    assert float(last["val_factors"]) < 0.3
    cost = tiny_cells.read_cost(out)
    assert cost["val_loss"] == pytest.approx(float(last["val_maps"]) + float(last["val_factors"]))
    assert {f"probe_{name}" for name in ANATOMY_FACTORS} < cost.keys()
    assert cost["probe_csf_share"] > 0.8
    assert "beats_template" not in cost
    assert read_tensors(out / "encoder.safetensors")[1]["pretraining"] == "factors"


def test_parts_of_a_batch_add_up_for_a_reader_of_anatomy(store: Path) -> None:
    add_anatomy(store)
    learner = given_to_fit(store, [], kind="factors")["learner"]
    gradients = []
    for parts in (1, 3, 7):
        learner.module.zero_grad()
        for loss in learner.batch_losses(torch.arange(7), 0, parts):
            loss.backward()
        gradients.append([value.grad for value in learner.module.parameters()])
    for other in gradients[1:]:
        for one, gradient in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(gradient, one, atol=1e-6, rtol=1e-4)


def test_what_all_brains_share_is_no_target(store: Path) -> None:
    add_anatomy(store)
    run = SimpleNamespace(
        rows=read_tsv(store / "scans.tsv"), train=19, store=store, device=torch.device("cpu")
    )
    reader = FactorReader(vit.build(tiny_cells.BACKBONE), len(ANATOMY_FACTORS))
    maps, factors = factors_learner._targets(run, reader)
    assert (maps.shape, factors.shape) == ((24, 27, 6), (24, len(ANATOMY_FACTORS)))
    assert not maps[:, 0].any()
    torch.testing.assert_close(maps[:19, 1:].mean(dim=0), torch.zeros(26, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[:19, 1:].std(dim=0), torch.ones(26, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(factors[:19].std(dim=0), torch.ones(len(ANATOMY_FACTORS)), atol=1e-5, rtol=0)
