import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from neuropeft.errors import UserError
from neuropeft.train.checkpoint import Progress, StateFolder
from neuropeft.train.learner import Batch, Learner, Plan
from neuropeft.train.loop import fit
from neuropeft.train.schedule import check_warmup, lr_scale

CPU = torch.device("cpu")


def run(folder: Path, validation: list[float], loss=None, **plan) -> tuple[Progress, nn.Parameter, list]:
    """Train one number towards 0 by constant steps, three between the given validation losses."""
    weight = nn.Parameter(torch.tensor([1.0]))
    module = nn.Module()
    module.weight = weight
    losses: Iterator[float] = iter(validation)
    seen = []

    def summed(batch: Batch):
        seen.append((batch.step, batch.rows.tolist()))
        return len(batch.rows) * (loss(weight, batch.step) if loss else weight.sum()), len(batch.rows)

    learner = Learner(
        module,
        lambda rows, step: rows,
        summed,
        lambda: {"val_loss": next(losses)},
        lambda: {"weight": weight.detach()},
        lambda state: weight.data.copy_(state["weight"]),
    )
    group = {"params": [weight], "lr": 0.01, "weight_decay": 0.0}
    defaults = {"steps": 3 * len(validation), "interval": 3, "warmup_steps": 0, "clip": 1.0, "patience": 2}
    settings = Plan("a/cell", 10, batch_size=4, seed=0, lr=0.01, **(defaults | plan))
    return fit(learner, [group], settings, StateFolder(folder, "f", {}), CPU), weight, seen


def test_stops_early_and_returns_to_the_best_validation(tmp_path: Path) -> None:
    progress, weight, seen = run(tmp_path / "a", [3.0, 2.0, 1.0, 1.5, 1.0, 0.5, 0.4])
    assert (progress.best_step, progress.best_loss) == (9, 1.0)
    assert [row["step"] for row in progress.history] == [3, 6, 9, 12, 15]
    assert len(seen) == 5 * 3
    # Adam's step on a constant gradient is the learning rate: nine steps, at their rates.
    scales = [0.5 * (1 + math.cos(math.pi * step / 21)) for step in range(9)]
    assert weight.item() == pytest.approx(1 - 0.01 * sum(scales), abs=1e-5)


def test_the_warm_up_lasts_its_steps(tmp_path: Path) -> None:
    progress, weight, _ = run(tmp_path, [1.0] * 4, warmup_steps=6, patience=None)
    rates = [0.01 * lr_scale(step, 6, 12) for step in range(12)]
    assert [row["lr"] for row in progress.history] == pytest.approx(rates[2::3]), "at each validation"
    assert weight.item() == pytest.approx(1 - sum(rates), abs=1e-5)


def test_without_patience_it_trains_to_the_end_and_keeps_the_last(tmp_path: Path) -> None:
    progress, weight, _ = run(tmp_path, [1.0, 2.0, 3.0, 4.0], patience=None)
    assert len(progress.history) == 4
    assert not progress.best_state
    assert weight.item() < 1 - 0.04


@pytest.mark.parametrize(
    ("validation", "best", "validations"),
    [
        ([0.1, 0.2, 3.0, 2.0, 2.5, 2.5, 0.0], 12, 6),  # those of the warm-up are the lowest
        ([0.1, 0.2, 3.0, 4.0, 5.0], 9, 5),  # patience begins to count after it
        ([0.1, 0.2], 6, 2),  # nothing but warm-up: the end of it
    ],
)
def test_no_weights_of_the_warm_up_are_chosen(
    tmp_path: Path, validation: list[float], best: int, validations: int
) -> None:
    warmup = min(6, 3 * len(validation) - 1)
    progress, _, _ = run(tmp_path, validation, warmup_steps=warmup)
    assert (progress.best_step, len(progress.history)) == (best, validations)


def test_without_patience_no_loss_chooses(tmp_path: Path) -> None:
    progress, _, _ = run(tmp_path, [1.0, 2.0], patience=None)
    assert (progress.best_step, progress.best_state) == (0, {})


def test_batches_are_full_and_every_pass_sees_every_scan_once_in_another_order(tmp_path: Path) -> None:
    _, _, seen = run(tmp_path, [1.0] * 5, steps=10, interval=2, patience=None)
    assert [step for step, _ in seen] == list(range(10))
    assert {len(rows) for _, rows in seen} == {4}, "however many scans there are"
    stream = [row for _, rows in seen for row in rows]
    passes = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4


def test_train_loss_is_the_mean_over_the_steps_since_the_last_validation(tmp_path: Path) -> None:
    values = iter([4.0, 4.0, 1.0, 6.0])
    progress, _, _ = run(
        tmp_path, [1.0, 1.0], steps=4, loss=lambda weight, step: weight.sum() * 0 + next(values)
    )
    assert [row["step"] for row in progress.history] == [3, 4], "the end is validated too"
    assert [row["train_loss"] for row in progress.history] == [3.0, 6.0]


def test_a_warm_up_of_all_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a/cell: a warm-up of 6 steps leaves none of 6 at the full lr"):
        run(tmp_path, [1.0, 1.0], warmup_steps=6)


def test_gradients_are_those_of_the_mean_loss_and_clipped(tmp_path: Path) -> None:
    norms = []
    original = nn.utils.clip_grad_norm_

    def spy(parameters, largest):
        (weight,) = parameters
        before = float(weight.grad.norm())
        original([weight], largest)
        norms.append((before, float(weight.grad.norm())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", spy)
        run(tmp_path, [1.0], loss=lambda weight, step: 1e6 * weight.sum(), clip=0.5)
    assert norms == [(1e6, pytest.approx(0.5, rel=1e-4))] * 3


@pytest.mark.parametrize("which", ["training", "validation"])
def test_loss_that_is_not_finite_names_cell_step_and_a_lower_lr(tmp_path: Path, which: str) -> None:
    def loss(weight, step):
        return weight.sum() * (math.nan if which == "training" and step == 4 else 1.0)

    validation = [1.0, math.inf if which == "validation" else 1.0, 1.0]
    message = f"a/cell: the {which} loss is not finite at step 6 at peak learning rate 0.01; give a lower lr"
    with pytest.raises(UserError, match=message):
        run(tmp_path, validation, loss=loss)


def test_schedule_warms_up_then_falls_to_zero() -> None:
    scales = [lr_scale(step, 4, 20) for step in range(20)]
    assert scales[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert scales[4] == pytest.approx(1.0)
    assert scales[12] == pytest.approx(0.5)
    assert scales[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert all(a > b for a, b in pairwise(scales[4:]))
    assert lr_scale(0, 0, 10) == 1.0


def test_warm_up_must_leave_steps() -> None:
    check_warmup("cell", 2, 3)
    with pytest.raises(UserError, match="cell: a warm-up of 3 steps leaves none of 3 at the full lr"):
        check_warmup("cell", 3, 3)
