"""How long jobs run and how much memory they take, for schedulers: upper estimates, larger with each attempt.

Training is estimated from its floating-point operations on a modest GPU, the rest from times per scan that
were measured on one core and multiplied by about four.
"""

import math
from collections.abc import Sequence

from neuropeft.config import Backbone, Trained, Training

START_MINUTES = 10  # queue noise, imports, reading volumes from a busy file system
FLOP_PER_SECOND = 4e12  # what small batches leave of a GPU of 2018
LONGEST_MINUTES = 12 * 60  # many partitions refuse more, and training that is stopped goes on by itself
MODEL_MB = (
    8000  # of a process: Python, torch, CUDA, batches on their way, the largest backbone and its optimiser
)


def scan_minutes(each: float, scans: int, attempt: int) -> int:
    """Return the minutes of a job over so many scans, from those that its rule gives each of them."""
    return _minutes(each * scans, attempt)


def finetune_minutes(
    backbone: Backbone, training: Training, size: int, cells: float, scans: int, attempt: int
) -> int:
    """Return the minutes of a job that trains `cells` cells on at most `scans` scans of edge `size`.

    A step is three forward passes and, for the features' statistics and the validation, less than another.
    """
    seen = max(training.epochs * scans, training.min_steps * training.batch_size)
    seconds = cells * seen * 4 * backbone.forward_flop(size) / FLOP_PER_SECOND
    return _minutes(seconds / 60, attempt)


def predict_minutes(backbone: Backbone, size: int, cells: int, scans: int, attempt: int) -> int:
    """Return the minutes of a job that predicts `scans` scans with each of `cells` cells."""
    return _minutes(cells * scans * backbone.forward_flop(size) / FLOP_PER_SECOND / 60, attempt)


def pretrain_minutes(backbone: Backbone, pretraining: Trained, size: int, attempt: int) -> int:
    """Return the minutes of a pretraining on one GPU; encoder and decoder together cost about one encoder."""
    seen = pretraining.steps * pretraining.batch_size
    seconds = seen * 3 * backbone.forward_flop(size) / FLOP_PER_SECOND
    return _minutes(seconds / 60, attempt)


def volumes_mb(scans: int, shape: Sequence[int]) -> int:
    """Return the megabytes of a store of `scans` arrays of a shape, in half precision."""
    return -(-scans * 2 * math.prod(shape) // 10**6)


def training_mb(scans: int, shape: Sequence[int], attempt: int, processes: int = 1) -> int:
    """Return the main memory, on a node, of a job that trains on or predicts a store of arrays of a shape.

    The GPU may have no room for the volumes; then they are read from a map whose pages in main memory the
    `processes` of the node share.
    """
    return attempt * processes * MODEL_MB + volumes_mb(scans, shape)


def probes_mb(train: int, scans: int, attempt: int) -> int:
    """Return the main memory of fitting probes: three matrices of all scans by those trained on."""
    return attempt * MODEL_MB + 3 * 8 * train * scans // 10**6


def _minutes(work: float, attempt: int) -> int:
    return min(round(attempt * (START_MINUTES + work)), LONGEST_MINUTES)
