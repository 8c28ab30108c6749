import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from neuropeft.errors import UserError
from neuropeft.train.loop import Home, Learner, Plan, Progress, fit
from neuropeft.train.schedule import lr_scale

CPU = torch.device("cpu")


def run(folder: Path, validation: list[float], loss=None, **plan) -> tuple[Progress, nn.Parameter, list]:
    """Train one number towards 0 by constant steps, with the given validation losses."""
    weight = nn.Parameter(torch.tensor([1.0]))
    module = nn.Module()
    module.weight = weight
    losses: Iterator[float] = iter(validation)
    seen = []

    def batch_losses(rows, epoch, step, parts):
        seen.append((epoch, step, rows.tolist()))
        yield loss(weight, epoch) if loss else weight.sum()

    learner = Learner(
        module,
        batch_losses,
        lambda: {"val_loss": next(losses)},
        lambda: {"weight": weight.detach()},
        lambda state: weight.data.copy_(state["weight"]),
    )
    group = {"params": [weight], "lr": 0.01, "weight_decay": 0.0}
    defaults = {"epochs": len(validation), "batch_size": 4, "warmup_epochs": 0, "clip": 1.0, "patience": 2}
    settings = Plan("a/cell", 10, seed=0, **(defaults | plan))
    return fit(learner, [group], settings, Home(folder, "f", {}), CPU), weight, seen


def test_stops_early_and_returns_to_the_best_epoch(tmp_path: Path) -> None:
    progress, weight, seen = run(tmp_path / "a", [3.0, 2.0, 1.0, 1.5, 1.0, 0.5, 0.4])
    assert (progress.best_epoch, progress.best_loss) == (3, 1.0)
    assert [row["epoch"] for row in progress.history] == [1, 2, 3, 4, 5]
    assert len(seen) == 5 * 3
    # Adam's step on a constant gradient is the learning rate: three epochs of three steps, at their rates.
    scales = [0.5 * (1 + math.cos(math.pi * step / 21)) for step in range(9)]
    assert weight.item() == pytest.approx(1 - 0.01 * sum(scales), abs=1e-5)


def test_the_warm_up_lasts_its_epochs(tmp_path: Path) -> None:
    progress, weight, _ = run(tmp_path, [1.0] * 4, warmup_epochs=2, patience=None)
    rates = [0.01 * lr_scale(step, 6, 12) for step in range(12)]  # three steps an epoch
    assert [row["lr"] for row in progress.history] == pytest.approx(rates[2::3]), "at the end of each epoch"
    assert weight.item() == pytest.approx(1 - sum(rates), abs=1e-5)


def test_without_patience_it_trains_to_the_end_and_keeps_the_last(tmp_path: Path) -> None:
    progress, weight, _ = run(tmp_path, [1.0, 2.0, 3.0, 4.0], patience=None)
    assert len(progress.history) == 4
    assert not progress.best_state
    assert weight.item() < 1 - 0.04


def test_every_scan_is_seen_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    _, _, seen = run(tmp_path, [2.0, 1.0])
    assert [len(rows) for _, _, rows in seen] == [4, 4, 2, 4, 4, 2]
    epochs = [[row for epoch, _, rows in seen if epoch == wanted for row in rows] for wanted in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_train_loss_is_the_mean_over_scans(tmp_path: Path) -> None:
    # The loss is 4 in batches of 4 scans and 1 in the last one, of 2 scans.
    values = iter([4.0, 4.0, 1.0])
    progress, _, _ = run(tmp_path, [1.0], loss=lambda weight, epoch: weight.sum() * 0 + next(values))
    assert progress.history[0]["train_loss"] == pytest.approx((4 * 8 + 1 * 2) / 10)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms = []

    def loss(weight, epoch):
        return 1e6 * weight.sum()

    original = nn.utils.clip_grad_norm_

    def spy(parameters, largest, **options):
        original(parameters, largest, **options)
        norms.append(float(parameters[0].grad.norm()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", spy)
        run(tmp_path, [1.0], loss=loss, clip=0.5)
    assert norms == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize("which", ["training", "validation"])
def test_loss_that_is_not_finite_names_cell_epoch_and_a_lower_lr(tmp_path: Path, which: str) -> None:
    def loss(weight, epoch):
        return weight.sum() * (math.nan if which == "training" and epoch == 1 else 1.0)

    validation = [1.0, math.inf if which == "validation" else 1.0, 1.0]
    message = f"a/cell: the {which} loss is not finite in epoch 2 at peak learning rate 0.01; give a lower lr"
    with pytest.raises(UserError, match=message):
        run(tmp_path, validation, loss=loss)
