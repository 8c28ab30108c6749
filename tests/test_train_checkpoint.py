import math
import os
import random
import resource
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuropeft.errors import UserError
from neuropeft.files import partial_path
from neuropeft.train import checkpoint, loop
from test_train_loop import run


def state(value: float, fingerprint: str = "run") -> dict:
    return {"fingerprint": fingerprint, "weights": torch.full((1000,), value)}


def loaded_value(folder: Path) -> float | None:
    found = checkpoint.load(folder, "run")
    return None if found is None else float(found["weights"][0])


def test_newest_is_loaded(tmp_path: Path) -> None:
    assert loaded_value(tmp_path) is None
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    assert loaded_value(tmp_path) == 2
    assert not list(tmp_path.glob(".partial*"))


def test_what_is_written_is_on_the_disk_before_it_takes_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, call=call: (done.append(name), call(*given)))
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    assert done == ["fsync", "replace", "fsync", "fsync", "replace", "replace", "fsync"]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: str, capsys) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    newest = tmp_path / checkpoint.NEWEST
    whole = newest.read_bytes()
    newest.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\x80abc" * 99}[damage])
    assert loaded_value(tmp_path) == 1
    assert f"cannot read the checkpoint {newest}" in capsys.readouterr().err
    checkpoint.save(tmp_path, state(3))
    (tmp_path / checkpoint.NEWEST).write_bytes(b"")
    assert loaded_value(tmp_path) == 1, "the damaged file must not have become the fallback"


def test_nothing_readable_starts_anew_and_says_so(tmp_path: Path, capsys) -> None:
    for name in (checkpoint.NEWEST, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"half")
    assert loaded_value(tmp_path) is None
    assert "starting anew" in capsys.readouterr().err


def test_missing_newest_falls_back(tmp_path: Path) -> None:
    # Killed between the two renames of a save.
    checkpoint.save(tmp_path, state(1))
    (tmp_path / checkpoint.NEWEST).rename(tmp_path / checkpoint.PREVIOUS)
    assert loaded_value(tmp_path) == 1


def test_other_fingerprint_is_discarded_and_said(tmp_path: Path, capsys) -> None:
    checkpoint.save(tmp_path, state(1, "other"))
    checkpoint.save(tmp_path, state(2, "other"))
    assert loaded_value(tmp_path) is None
    assert "belongs to another configuration" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_last_good_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    big = {"fingerprint": "run", "weights": torch.zeros(1_000_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot save the checkpoint .*checkpoint\.pt: .*too large"):
            checkpoint.save(tmp_path, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert loaded_value(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NEWEST]


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1))
    partial = partial_path(tmp_path / checkpoint.NEWEST)
    partial.symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"cannot save the checkpoint .*: \[Errno 28\] No space left on device; free"
    ):
        checkpoint.save(tmp_path, state(2))
    assert loaded_value(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NEWEST]


def test_fingerprint_sees_every_value_and_no_order() -> None:
    one = checkpoint.fingerprint({"a": 1, "b": [1.5, "x"]})
    assert one == checkpoint.fingerprint({"b": [1.5, "x"], "a": 1})
    assert one != checkpoint.fingerprint({"a": 1, "b": [1.5, "y"]})


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1) | {"generators": checkpoint.rng_state()})
    expected = torch.rand(3), random.random()
    found = checkpoint.load(tmp_path, "run")
    assert found is not None
    checkpoint.set_rng_state(found["generators"])
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


# -- what the loop saves -----------------------------------------------------------------------------


@pytest.fixture
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_train_loop.StateFolder", partial(checkpoint.StateFolder, seconds=0))


@pytest.mark.usefixtures("save_every_step")
def test_a_run_goes_on_with_its_best_weights_and_tells_how_long_it_took_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = iter([10.0, 3.0])  # of the two processes, at their first step
    monkeypatch.setattr(loop, "seconds_since_process_start", lambda: next(ages))
    steps = count()

    def die(weight: torch.Tensor, step: int) -> torch.Tensor:
        if next(steps) == 7:
            raise KeyboardInterrupt  # validated twice, every three steps
        return weight.sum()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [3.0, 1.0], die, steps=12)
    progress, *_ = run(tmp_path, [2.0, 2.5], steps=12)
    assert [row["val_loss"] for row in progress.history] == [3.0, 1.0, 2.0, 2.5]
    assert (progress.best_step, progress.best_loss, progress.resumed) == (6, 1.0, 1)
    assert progress.start_seconds == 3.0


@pytest.mark.usefixtures("save_every_step")
@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_that_ended_before_a_validation_validates_first(
    tmp_path: Path, done: int, patience: int | None
) -> None:
    """Of two validations, the last one at the last step."""
    with pytest.raises(StopIteration):
        run(tmp_path, [3.0, 2.0][:done], steps=6, patience=patience)
    progress, _, seen = run(tmp_path, [3.0, 2.0][done:], steps=6, patience=patience)
    assert [(row["step"], row["val_loss"]) for row in progress.history] == [(3, 3.0), (6, 2.0)]
    assert [step for step, _ in seen] == ([] if done else [3, 4, 5])


@pytest.mark.usefixtures("save_every_step")
def test_a_run_that_has_broken_does_not_replace_its_last_good_checkpoint(tmp_path: Path) -> None:
    steps = count()
    with pytest.raises(UserError, match="the training loss is not finite"):
        run(tmp_path, [1.0], lambda weight, step: weight.sum() * (1 if next(steps) == 0 else math.nan))
    found = checkpoint.load(tmp_path, "f")
    assert found is not None
    assert found["progress"]["step"] == 1
    assert torch.isfinite(found["model"]["weight"]).all()


def test_checkpoints_come_every_few_minutes_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    saved, save = [], checkpoint.save_run
    monkeypatch.setattr(checkpoint, "save_run", lambda *given: [saved.append(1), save(*given)])
    run(tmp_path, [1.0] * 4)  # in twelve steps of a minute and more
    assert checkpoint.load(tmp_path, "f") is not None
    assert 2 <= len(saved) <= 6, "not at every step"
