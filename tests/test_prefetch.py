"""Batches that are loaded ahead are those that training takes otherwise, and loading them ends with it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.train.data import Volumes, batch_rows, load_volumes
from neuropeft.train.prefetch import DEPTH, TrainingBatches, prefetch
from neuropeft.train.pretrain import pretrain
from neuropeft.train.ranks import Ranks
from test_train_memory import room_for

SOURCE = np.arange(10 * 8, dtype=np.float16).reshape(10, 2, 2, 2)
BATCHES = [torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([9, 9, 2])]


@pytest.fixture
def volumes() -> Volumes:
    return load_volumes(SOURCE, range(10), torch.device("cpu"))


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Have volumes as if they were not on the device; return the rows of each batch that is loaded."""
    take, taken = Volumes.take, []
    monkeypatch.setattr(Volumes, "on_device", False)
    monkeypatch.setattr(Volumes, "take", lambda self, rows: taken.append(rows.tolist()) or take(self, rows))
    return taken


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_batches_come_in_order_and_no_more_than_two_ahead(volumes: Volumes, away: list[list[int]]) -> None:
    asked: list[int] = []

    def batches() -> Iterator[Tensor]:
        for rows in BATCHES * 3:
            asked.append(len(rows))
            yield rows

    for i, (rows, batch) in enumerate(prefetch(volumes, batches())):
        assert torch.equal(rows, BATCHES[i % 3])
        assert np.array_equal(batch, SOURCE[rows.numpy()])
        assert len(asked) <= i + 3
    assert i == 8
    assert len(away) == 9
    assert not threads()


def test_an_error_comes_in_place_of_its_batch_and_ends_the_thread(volumes: Volumes) -> None:
    loaded = prefetch(volumes, [BATCHES[0], torch.tensor([99]), BATCHES[1]])
    assert np.array_equal(next(loaded)[1], SOURCE[[3, 1]])
    with pytest.raises(IndexError):
        next(loaded)
    assert not threads()


def test_the_thread_ends_when_nobody_wants_more(volumes: Volumes) -> None:
    loaded = prefetch(volumes, BATCHES * 100)
    next(loaded)
    assert len(threads()) == 1
    del loaded
    assert not threads()

    def fail() -> None:
        for _ in prefetch(volumes, BATCHES * 100):
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fail()
    assert not threads()


@pytest.mark.parametrize("rank", [0, 1])
def test_training_takes_each_batch_once_wherever_it_begins(
    volumes: Volumes, away: list[list[int]], rank: int
) -> None:
    places = torch.tensor([9, 8, 7, 6, 5, 4, 3])
    part = Ranks(rank, 2)
    batches = TrainingBatches(volumes, places, 3, seed=5, ranks=part)  # uneven parts

    def expect(rows: Tensor, step: int) -> None:
        mine = places[rows[part.share(len(rows))]]
        assert np.array_equal(batches.get(rows, step), SOURCE[mine.numpy()])

    def expect_step(step: int) -> None:
        expect(batch_rows(7, 3, 5, step), step)

    for step in range(4):  # the third ends one pass and begins another
        expect_step(step)
    assert len(away) <= 4 + DEPTH, "none is loaded twice"
    for step in (9, 10):  # of a run that goes on there
        expect_step(step)
    expect_step(10)  # again
    expect_step(10)
    expect(torch.tensor([0, 1, 2]), 11)  # what the order does not say
    expect_step(12)


def outcomes(store: Path, name: str) -> tuple[list, list]:
    """Pretrain and fine-tune; return all losses and weights."""
    folder = store.parent / name
    pretrain(tiny_cells.pretraining(), store, [], folder / "mae", folder / "state", device="cpu")
    split = tiny_cells.make_split(folder / "seed-0.tsv", store)
    spec = tiny_cells.cell(method={"kind": "full"})
    tiny_cells.finetune(spec, store, split, None, folder / "cell", folder / "cell-state")
    history = tiny_cells.read_history(folder / "mae") + tiny_cells.read_history(folder / "cell")
    weights = [
        read_tensors(path)[0]
        for path in (folder / "mae/encoder.safetensors", folder / "cell/delta.safetensors")
    ]
    return history, [{name: value.tolist() for name, value in tensors.items()} for tensors in weights]


@pytest.mark.parametrize("room", [8, 3])
def test_training_gives_the_same_to_the_bit(tmp_path: Path, room: int, request) -> None:
    from neuropeft.backbones.vit import ViT3D
    from neuropeft.pretraining.mae3d import MAE3D

    store = tiny_cells.make_store(tmp_path / "store")
    with room_for(room, MAE3D), room_for(room, ViT3D):  # or each batch is taken anew in smaller parts
        direct = outcomes(store, "direct")
        request.getfixturevalue("away")
        assert outcomes(store, "ahead") == direct
    assert not threads()
