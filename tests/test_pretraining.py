"""What every kind of pretraining must do, and what single ones are."""

import json
import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch

import tiny_cells
from kinds import PRETRAININGS, backbone_settings, pretraining_settings
from neuropeft import pretraining
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import load_encoder, read_tensors, save_encoder
from neuropeft.backbones.patches import patchify
from neuropeft.cli import main
from neuropeft.cohorts.synthetic import ANATOMY_FACTORS
from neuropeft.config.pretraining import Pretraining as Settings
from neuropeft.files import read_tsv
from neuropeft.pretraining.factors import Factors
from neuropeft.pretraining.mae import MaskedAutoencoding
from neuropeft.store import open_store
from neuropeft.train import checkpoint
from neuropeft.train import pretrain as training
from neuropeft.train.data import generator
from neuropeft.train.pretrain import kind_of, pretrain
from neuropeft.train.sources import pretraining_scans

TRAINED = [one for one in PRETRAININGS if not {"weights", "of"} & one.keys()]
BACKBONE = backbone_settings(
    {key: value for key, value in tiny_cells.BACKBONE.items() if key != "image_size"}
    | {"decoder": tiny_cells.DECODER}
)
TESTED = 4  # subjects


def label(settings: dict[str, Any]) -> str:
    return "-".join(map(str, settings.values()))


def spec_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a kind's settings say that defines a pretraining of the tiny backbone."""
    # Stochastic depth draws from torch's own generator.
    backbone = tiny_cells.BACKBONE | {"drop_path": 0.2}
    return {**pretraining_settings(settings).spec(BACKBONE), "backbone": backbone}


def test_the_table_and_the_settings_know_the_same_kinds_and_all_are_tested() -> None:
    classes = [get_args(one)[0] for one in get_args(get_args(Settings)[0])]
    kinds = {
        getattr(one, "kind", None) or get_args(one.model_fields["kind"].annotation)[0] for one in classes
    }
    assert kinds == set(pretraining.MODULES) == {pretraining_settings(one).kind for one in PRETRAININGS}


class Done(NamedTuple):
    """A pretraining that has been trained, with the split whose test subjects are held out."""

    spec: dict[str, Any]
    store: Path
    split: Path
    out: Path


# `make test-quick` has each kind once.
MARKS = [pytest.mark.slow if "mask" in one else () for one in TRAINED]


@pytest.fixture(
    scope="module",
    params=[pytest.param(one, id=label(one), marks=mark) for one, mark in zip(TRAINED, MARKS, strict=True)],
)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("pretraining")
    store = tiny_cells.add_anatomy(tiny_cells.make_store(folder / "store", scans=32))
    split = tiny_cells.make_split(folder / "seed-0.tsv", store, test=TESTED)
    spec = spec_of(request.param)
    pretrain(spec, store, [split], folder / "out", folder / "state", device="cpu")
    assert {path.name for path in (folder / "state").iterdir()} == {"finished", "lock"}
    return Done(spec, store, split, folder / "out")


def learner_of(done: Done, start: Path | None = None, **changes: Any) -> Any:
    paths = done.store, [done.split], done.out, done.store / "state"
    spec = done.spec | {"backbone": tiny_cells.BACKBONE} | changes
    return tiny_cells.given_to_fit("pretrain", pretrain, spec, *paths, start=start, device="cpu")["learner"]


def test_the_encoder_file_fits_the_backbone_and_says_what_made_it(done: Done) -> None:
    encoder = vit.build(tiny_cells.BACKBONE)
    metadata = load_encoder(done.out / "encoder.safetensors", encoder)
    assert (metadata["pretraining"], metadata["steps"]) == (done.spec["kind"], "40")
    cost = tiny_cells.read_cost(done.out)
    assert cost["encoder"] == sum(value.numel() for value in encoder.parameters()) < cost["total"]


def test_it_leaves_what_it_says(done: Done) -> None:
    kind, last = kind_of(done.spec), tiny_cells.read_history(done.out)[-1]
    left = {"encoder.safetensors", "encoder.safetensors.json", "history.csv", "cost.json", *kind.files}
    left |= {f"encoder-{percent}.safetensors" for percent in (10, 25, 50)}
    assert {path.name for path in done.out.iterdir()} == left
    probes = [f"probe_{name}" for name in ANATOMY_FACTORS]
    shown = [*kind.shows, "participation_ratio", *probes]
    assert list(last) == ["step", "lr", "train_loss", *shown, "accumulation"]
    cost = tiny_cells.read_cost(done.out)
    assert {name: cost[name] for name in shown} == {name: float(last[name]) for name in shown}
    assert (cost["steps"], cost["validation_scans"], cost["processes"]) == (40, 6, 1)


def test_its_losses_are_finite_and_fall(done: Done) -> None:
    rows = tiny_cells.read_history(done.out)
    assert all(math.isfinite(float(row[name])) for row in rows for name in row)
    for loss in ("train_loss", "val_loss"):
        assert float(rows[-1][loss]) < 0.98 * float(rows[0][loss]), loss


def test_subjects_that_are_tested_on_are_not_read(done: Done, tmp_path: Path) -> None:
    """It gives the same to the bit where they are not even numbers."""
    store = tiny_cells.add_anatomy(tiny_cells.make_store(tmp_path / "store", scans=32))
    for path in store.glob("*.npy"):
        values = np.load(path)
        values[-TESTED:] = np.nan
        np.save(path, values)
    pretrain(done.spec, store, [done.split], tmp_path / "out", tmp_path / "state", device="cpu")
    assert_same(tmp_path / "out", done.out)


def assert_same(one: Path, other: Path) -> None:
    weights, others = (read_tensors(folder / "encoder.safetensors")[0] for folder in (one, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert tiny_cells.read_history(one) == tiny_cells.read_history(other)


@pytest.mark.slow
def test_what_is_interrupted_ends_as_what_is_not(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = done.store, [done.split], tmp_path / "out", tmp_path / "state"
    save, saved = checkpoint.save, []  # the sixth comes before a validation

    def save_and_die(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        saved.append(state["progress"]["step"])
        if len(saved) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        pretrain(done.spec, *paths, device="cpu", checkpoint_seconds=0)
    pretrain(done.spec, *paths, device="cpu")
    assert (saved, tiny_cells.read_cost(tmp_path / "out")["resumed"]) == ([*range(1, 7)], 1)
    assert_same(tmp_path / "out", done.out)


def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(done: Done) -> None:
    learner, rows = learner_of(done), torch.arange(7)
    learner.module.train()
    loss, gradients = tiny_cells.passed(learner, rows, 2)
    assert gradients.keys() == dict(learner.module.named_parameters()).keys()
    assert all(gradient.any() for gradient in gradients.values()), "everything is trained"
    for parts in (2, 3, 7):
        other, others = tiny_cells.passed(learner, rows, 2, parts)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, gradient in others.items():
            torch.testing.assert_close(gradient, gradients[name], atol=1e-6, rtol=1e-4)


def test_another_step_is_another_loss_and_validations_are_alike(done: Done) -> None:
    learner = learner_of(done, augment={"noise": 0.1})
    losses = [tiny_cells.passed(learner, torch.arange(4), step)[0] for step in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    with torch.inference_mode():
        first, second = learner.validate(), learner.validate()
    assert first == second


def test_parameters_and_buffers_come_back(done: Done) -> None:
    learner = learner_of(done)
    state = {name: value.clone() for name, value in learner.state().items()}
    tensors = dict(chain(learner.module.named_parameters(), learner.module.named_buffers()))
    fixed = {name: value.clone() for name, value in tensors.items() if name not in state}
    with torch.no_grad():
        for name in state:
            tensors[name].add_(1)
    learner.load(state)
    tiny_cells.passed(learner, torch.arange(4))
    for name, value in {**state, **fixed}.items():
        assert torch.equal(tensors[name], value), name
    assert {f"encoder.{name}" for name in learner.module.encoder.state_dict()} <= set(state)


def test_it_starts_from_another_pretrainings_encoder(done: Done, tmp_path: Path) -> None:
    torch.manual_seed(7)
    encoder = vit.build(tiny_cells.BACKBONE)
    save_encoder(tmp_path / "start.safetensors", encoder, {})
    own, other = (learner_of(done, start=start).module for start in (None, tmp_path / "start.safetensors"))
    for name, value in encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], value), name
    assert not torch.equal(own.encoder.patch_embed.weight, encoder.patch_embed.weight)


def test_imported_weights_become_an_encoder_file(tmp_path: Path) -> None:
    """The other conformance tests are of kinds that are trained."""
    theirs, out = tmp_path / "encoder.safetensors", tmp_path / "out.safetensors"
    save_encoder(theirs, vit.build(tiny_cells.BACKBONE), {})
    backbone = json.dumps(tiny_cells.BACKBONE)
    assert main(["import-encoder", "--weights", str(theirs), "--backbone", backbone, "--out", str(out)]) == 0
    assert load_encoder(out, vit.build(tiny_cells.BACKBONE))["from"] == theirs.name


# -- the masked autoencoder --------------------------------------------------------------------------


def test_its_pictures_show_what_was_hidden(store: Path) -> None:
    out = store.parent / "out"
    pretrain(tiny_cells.pretraining(), store, [], out, store.parent / "state", device="cpu")
    pictures = np.load(out / "reconstructions.npz")
    shape = (4, *[tiny_cells.EDGE] * 3)
    names = ("input", "mask", "reconstruction")
    assert {name: pictures[name].shape for name in names} == dict.fromkeys(names, shape)
    hidden = pictures["mask"].astype(bool)
    assert hidden.mean() == pytest.approx(21 / 27)  # int(27 * 0.25) patches are visible
    assert np.array_equal(pictures["input"][~hidden], pictures["reconstruction"][~hidden])


def brute_template_loss(store: Path, spec: dict, brain: list[int]) -> float:
    """Return the loss of predicting mean patches, patch by patch, where only the places `brain` are used."""
    opened = open_store(store)
    patches = []
    for rows in pretraining_scans(spec, store / "scans.tsv", []):
        places = [opened.index_of(row["scan_id"]) for row in rows]
        volumes = torch.from_numpy(opened.volumes[places].astype(np.float32))
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
    volumes[:21, :, :, :4] = -1  # background of most scans: a third of the places
    np.save(store / "volumes.npy", volumes)
    background = [place for place in range(27) if place // 3 % 3 == 0]
    brain = [place for place in range(27) if mask == "all" or place not in background]
    spec = tiny_cells.pretraining(mask=mask)
    paths = store, [], store.parent / "out", store.parent / "state"
    learner = tiny_cells.given_to_fit("pretrain", pretrain, spec, *paths, device="cpu")["learner"]
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
    row = {"val_loss": 0.5, "template_loss": 0.6}
    assert MaskedAutoencoding.verdict(SimpleNamespace(), row) == {"beats_template": True}
    assert not capsys.readouterr().err


# -- reading synthetic anatomy -----------------------------------------------------------------------


def test_a_reader_of_anatomy_learns_maps_and_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "VALIDATIONS", 4)  # probes take their time
    store = tiny_cells.add_anatomy(tiny_cells.make_store(tmp_path / "store", scans=120))
    rates = {"steps": 200, "warmup_steps": 20, "batch_size": 16, "lr": 5e-3}
    spec, out = tiny_cells.pretraining(kind="factors", augment={}, **rates), tmp_path / "out"
    pretrain(spec, store, [], out, tmp_path / "state", device="cpu")
    *_, last = tiny_cells.read_history(out)
    assert float(last["val_maps"]) < 0.3, "1 is the loss of the mean of each place"
    assert float(last["val_factors"]) < 0.3
    cost = tiny_cells.read_cost(out)
    assert cost["val_loss"] == pytest.approx(float(last["val_maps"]) + float(last["val_factors"]))
    assert cost["probe_csf_share"] > 0.8


def test_what_all_brains_share_is_no_target(store: Path) -> None:
    tiny_cells.add_anatomy(store)
    rows, spec = read_tsv(store / "scans.tsv"), {"backbone": tiny_cells.BACKBONE}
    run = SimpleNamespace(spec=spec, rows=rows, train=19, store=store, device=torch.device("cpu"))
    maps, factors = Factors(run).targets
    assert (maps.shape, factors.shape) == ((24, 27, 6), (24, len(ANATOMY_FACTORS)))
    assert not maps[:, 0].any()
    torch.testing.assert_close(maps[:19, 1:].mean(dim=0), torch.zeros(26, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[:19, 1:].std(dim=0), torch.ones(26, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(factors[:19].std(dim=0), torch.ones(len(ANATOMY_FACTORS)), atol=1e-5, rtol=0)
