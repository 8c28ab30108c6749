"""The steps of a cell, and its learning rate: linear warm-up, then half a cosine to zero, per step."""

import math
from collections.abc import Mapping
from typing import Any

from neuropeft.errors import UserError


def planned_steps(training: Mapping[str, Any], whole: int) -> tuple[int, int]:
    """Return the steps between two validations of a cell, and its steps if nothing stops it early.

    They are as many with every subset as with all of the data.

    `whole` is how many scans there are to train on with all of the training subjects.
    """
    interval = -(-whole // int(training["batch_size"]))  # steps of a pass over all training scans
    epochs = max(int(training["epochs"]), -(-int(training["min_steps"]) // interval))
    return interval, epochs * interval


def check_warmup(name: str, warmup_steps: int, steps: int) -> None:
    """Raise `UserError` if the warm-up would last all of the training."""
    if warmup_steps >= steps:
        raise UserError(
            f"{name}: a warm-up of {warmup_steps} steps leaves none of {steps} at the full lr; "
            "give a shorter warm-up or a longer training"
        )


def lr_scale(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the share of the peak learning rate at `step`, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
