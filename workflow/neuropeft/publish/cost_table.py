"""The table of costs: what a cell of each method takes, and how far off the estimate was."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from neuropeft.cells.costs import Costs
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders
from neuropeft.files import MISSING
from neuropeft.forecast.seconds import training_seconds
from neuropeft.grid import Cell, used_tasks
from neuropeft.peaks import peak_of
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.sheet import Sheet

Cost = Mapping[str, Any]


class Column(NamedTuple):
    """A column of the table: its name, the key of cost.json, and how a mean is written."""

    title: str
    key: str
    text: Callable[[float], str]


def _number(unit: float = 1.0) -> Callable[[float], str]:
    """Return what writes a value in a unit, with three digits that count."""

    def text(value: float) -> str:
        shown = value / unit
        return f"{shown:,.0f}" if shown >= 100 else f"{shown:.3g}"

    return text


COLUMNS = (
    Column("Trained\nparameters", "trainable", lambda value: f"{value:,.0f}"),
    Column("Stored\nnumbers", "stored", lambda value: f"{value:,.0f}"),
    Column("Delta\n(MB)", "delta_bytes", _number(1e6)),
    Column("Memory\n(GB)", "peak_memory_bytes", _number(1e9)),
    Column("Step\n(ms)", "seconds_per_step", _number(1e-3)),
    Column("Training\n(s)", "train_seconds", _number()),
    Column("Scans\nper s", "samples_per_second", _number()),
    Column("GFLOP\nper scan", "flops_per_sample", _number(1e9)),
    Column("MFU\n(%)", "mfu", _number(0.01)),
    Column("Energy\n(kJ)", "energy_joule", _number(1e3)),
)
NOTES = (
    "Trained: parameters of the backbone, without the head. Stored: numbers of the delta, the head and "
    "frozen tensors that a method puts in included.",
    "Memory: the most that was in use at once: of the GPU, without scans of other cells; on a CPU of the "
    "process. What PyTorch reserved on a GPU is in costs.csv.",
    "Training: steps and validations, without the start; steps and scans per second rest on it.",
    "GFLOP: forward and backward pass of a training step for one scan, matrix products and convolutions "
    "alone; layers whose outputs are held are not passed in a step, and not counted.",
    "MFU: scans per second times GFLOP per scan, of the GPU's peak of dense bfloat16 products. Energy: of "
    "the whole GPU, by its driver's counter, whoever else used it.",
)


def estimated_seconds(config: Config, cell: Cell, cost: Cost) -> float | None:
    """Return how long a cell's training was likely to take on its GPU, as `neuropeft estimate` tells it.

    None on a CPU, on a GPU whose peak is not known, and of a cell whose operations were not counted.
    """
    peak, flops, steps = peak_of(cost["device"]), cost.get("flops_per_sample"), cost.get("most_steps")
    if peak is None or flops is None or steps is None:
        return None
    backbone = config.backbones[cell.backbone]
    return training_seconds(backbone, flops, steps, config.training.batch_size, peak)


def cost_sheet(config: Config, costs: Costs) -> Sheet:
    """Lay out the means over seeds and folds of every task, backbone, start and method, at most data."""
    tasks = used_tasks(config)
    largest = {task: max(cell.subset for cell in costs if cell.task == task) for task in tasks}
    shown = [one for one in contenders(config) if one.sort == "cells" and one.subset == largest[one.task]]
    shown.sort(key=lambda one: (tasks.index(one.task), one.place))
    of_group: dict[object, list[Cost | None]] = {}
    for cell, cost in costs.items():
        of_group.setdefault(cell.group, []).append(cost)
    means = [_means(of_group[one.group]) for one in shown]
    known = [column for column in COLUMNS if any(column.key in mean for mean in means)] or COLUMNS
    rows = [
        [_task(one), one.label, *_texts(known, mean), _there(of_group[one.group])]
        for one, mean in zip(shown, means, strict=True)
    ]
    unknown = [column.title.partition("\n")[0] for column in COLUMNS if column not in known]
    left_out = [f"Not known of any cell here, so not shown: {', '.join(unknown)}."] if unknown else []
    return Sheet(
        "costs",
        "What a cell costs: means over seeds and folds, at the largest part of the training subjects.",
        ("Task", "Contender", *(column.title for column in known), "Cells"),
        rows,
        (*NOTES, *left_out, accuracy(config, costs)),
        part_breaks(rows, 1),
        text_columns=2,
    )


def accuracy(config: Config, costs: Costs) -> str:
    """Return how far off the estimate of all finished cells was, on each device, as a sentence."""
    sums: dict[str, list[tuple[float | None, float]]] = {}
    for cell, cost in costs.items():
        if cost is not None:
            pair = estimated_seconds(config, cell, cost), float(cost["train_seconds"])
            sums.setdefault(str(cost["device"]), []).append(pair)
    parts = [f"on {device} {_factor(pairs)}" for device, pairs in sorted(sums.items())]
    return f"Estimated beside measured training time: {'; '.join(parts) or MISSING}."


def _factor(pairs: Sequence[tuple[float | None, float]]) -> str:
    both = [(guess, took) for guess, took in pairs if guess is not None]
    if not both:
        return f"{MISSING} (the estimate is of GPUs whose peak is known)"
    guess, took = (sum(values) for values in zip(*both, strict=True))
    times = guess / took if guess > took else took / guess
    how = "too much" if guess > took else "too little"
    return f"{guess:,.0f} s and {took:,.0f} s of {len(both)} cells, {times:.1f} times {how}"


def _means(some: Sequence[Cost | None]) -> dict[str, float]:
    """Return the means of what is known of some cells."""
    found = [cost for cost in some if cost is not None]
    values = {
        column.key: [cost[column.key] for cost in found if cost.get(column.key) is not None]
        for column in COLUMNS
    }
    return {key: fmean(known) for key, known in values.items() if known}


def _texts(columns: Sequence[Column], mean: Mapping[str, float]) -> list[str]:
    return [column.text(mean[column.key]) if column.key in mean else MISSING for column in columns]


def _there(some: Sequence[Cost | None]) -> str:
    return f"{sum(cost is not None for cost in some)}/{len(some)}"


def _task(one: Contender) -> str:
    return one.task if one.subset.of_all and one.subset.size == 100 else f"{one.task} ({one.subset.label})"
