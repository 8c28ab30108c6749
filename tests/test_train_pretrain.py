from pathlib import Path

import numpy as np
import pytest

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from neuropeft.models.build import build_vit
from neuropeft.models.checkpoints import load_encoder
from neuropeft.train.pretrain import _scans, pretrain


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
