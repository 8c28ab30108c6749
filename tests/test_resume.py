"""A run that is killed and started again ends as one that was never interrupted, bit for bit on the CPU."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.files import read_tsv, write_tsv
from neuropeft.train import checkpoint
from neuropeft.train.signals import REQUEUE_EXIT_CODE

# Dropout and stochastic depth draw from torch's own generator, augmentation and order from derived seeds.
METHOD = tiny_cells.LORA | {"dropout": 0.2}
SPEC = tiny_cells.cell(method=METHOD, training={"epochs": 4, "drop_path": 0.2})
# Nothing to learn: the first epoch stays the best one, and patience runs over the kill and ends it.
HOPELESS = tiny_cells.cell(
    method=METHOD | {"lr": 0.03},
    shuffle_labels=True,
    training={"epochs": 4, "patience": 2, "warmup_epochs": 0},
)
PRETRAINING = tiny_cells.pretraining(backbone=tiny_cells.BACKBONE | {"drop_path": 0.2})
KILLED_AT = 6  # of a fine-tune the second step of the second epoch

KILL = """
import os, signal, tiny_cells, torch
step, calls = torch.optim.AdamW.step, []
def killing_step(self):
    calls.append(self)
    if len(calls) == {killed_at}:
        os.kill(os.getpid(), {signal})
    step(self)
torch.optim.AdamW.step = killing_step
"""


def killed(run: str, number: int) -> int:
    """Run code in a process that gets a signal in its step `KILLED_AT`; return its exit status."""
    code = KILL.format(killed_at=KILLED_AT, signal=number) + run
    process = tiny_cells.python(code, OMP_NUM_THREADS=str(torch.get_num_threads()))
    process.communicate(timeout=120)
    return process.returncode


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tiny_cells.make_store(tmp_path / "store")
    tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    return store


def assert_same_delta(one: Path, other: Path) -> None:
    first, second = (read_tensors(folder / "delta.safetensors") for folder in (one, other))
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert tiny_cells.read_history(one) == tiny_cells.read_history(other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "spec", "best", "steps"),
    [
        (signal.SIGKILL, -signal.SIGKILL, SPEC, 16, 16),
        (signal.SIGTERM, REQUEUE_EXIT_CODE, SPEC, 16, 16),
        (signal.SIGUSR1, REQUEUE_EXIT_CODE, HOPELESS, 4, 12),
    ],
)
def test_a_killed_fine_tune_goes_on_exactly(
    store: Path, number: int, status: int, spec: dict, best: int, steps: int, capsys
) -> None:
    folder = store.parent
    seconds = 0 if number == signal.SIGKILL else 1e9  # a signal saves even where no checkpoint is due
    arguments = f"{spec!r}, {str(store)!r}, {str(folder / 'seed-0.tsv')!r}, None, {str(folder / 'resumed')!r}"
    run = f"import tiny_cells\ntiny_cells.finetune({arguments}, {str(folder / 'state')!r}, {seconds})"
    assert killed(run, number) == status
    assert (folder / "state" / checkpoint.NEWEST).exists()
    assert not (folder / "resumed").exists()
    split = folder / "seed-0.tsv"
    tiny_cells.finetune(spec, store, split, None, folder / "resumed", folder / "state")
    assert f"going on from step {5 if seconds == 0 else 6} of" in capsys.readouterr().err
    tiny_cells.finetune(spec, store, split, None, folder / "whole", folder / "other state")
    assert_same_delta(folder / "resumed", folder / "whole")
    cost = tiny_cells.read_cost(folder / "resumed")
    assert (cost["resumed"], cost["best_step"], cost["steps"]) == (1, best, steps)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_time_but_not_exactness(store: Path, capsys) -> None:
    folder = store.parent
    arguments = f"{SPEC!r}, {str(store)!r}, {str(folder / 'seed-0.tsv')!r}, None, {str(folder / 'resumed')!r}"
    run = f"import tiny_cells\ntiny_cells.finetune({arguments}, {str(folder / 'state')!r}, 0)"
    killed(run, signal.SIGKILL)
    newest = folder / "state" / checkpoint.NEWEST
    newest.write_bytes(newest.read_bytes()[:-200])
    split = folder / "seed-0.tsv"
    tiny_cells.finetune(SPEC, store, split, None, folder / "resumed", folder / "state")
    said = capsys.readouterr().err
    assert "cannot read the checkpoint" in said
    assert "going on from step 4 of" in said  # the end of the first epoch, not yet validated
    tiny_cells.finetune(SPEC, store, split, None, folder / "whole", folder / "other state")
    assert_same_delta(folder / "resumed", folder / "whole")


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["method"].update(lr=1e-3),
        lambda spec: spec.update(subset="fraction-50"),
        lambda spec: spec["training"].update(batch_size=4),
    ],
)
def test_a_checkpoint_of_another_cell_is_discarded(
    store: Path, change: Callable[[dict], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.parent
    spec = tiny_cells.cell(method=dict(METHOD))
    change(spec)
    checkpoint.save(folder / "state", {"fingerprint": "of another cell"})
    tiny_cells.finetune(spec, store, folder / "seed-0.tsv", None, folder / "out", folder / "state")
    assert "belongs to another configuration or other data: discarding it" in capsys.readouterr().err
    assert tiny_cells.read_cost(folder / "out")["resumed"] == 0


def test_the_fingerprint_sees_the_data(store: Path) -> None:
    folder = store.parent

    def fingerprint(spec: dict) -> str:
        paths = (store, folder / "seed-0.tsv", None, folder / "out", folder / "state")
        return tiny_cells.given_to_fit("finetune", tiny_cells.finetune, spec, *paths)["state"].fingerprint

    plain = fingerprint(SPEC)
    assert plain == fingerprint(SPEC)
    assert plain != fingerprint(SPEC | {"subset": "fraction-50"})
    tiny_cells.make_split(folder / "seed-0.tsv", store, validation=5)
    assert plain != fingerprint(SPEC)
    split = folder / "seed-0.tsv"
    swapped = [row | {"y": 1 - int(row["y"])} for row in read_tsv(tiny_cells.make_split(split, store))]
    write_tsv(split, swapped, list(swapped[0]))  # the same scans with other targets
    assert plain != fingerprint(SPEC)
    tiny_cells.make_split(folder / "seed-0.tsv", store)
    assert plain == fingerprint(SPEC)
    tiny_cells.make_store(store)  # packed again, just the same
    assert plain == fingerprint(SPEC)
    tiny_cells.make_store(store, seed=1)  # the same scans, preprocessed otherwise
    assert plain != fingerprint(SPEC)
