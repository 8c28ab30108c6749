"""How long the cells that are not done will train, judged by those that are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from neuropeft.cells.status import DONE, CellStatus
from neuropeft.grid import Cell

Cost = dict[str, Any]

# What a finished cell must share with the one that it is judged by; the first of these that some cell fulfils
# counts. Seconds are those of cells of the same fraction, or scaled by the number of training scans.
NEAREST: tuple[tuple[str, ...], ...] = (
    ("task", "backbone", "pretraining", "method", "fraction"),
    ("task", "backbone", "pretraining", "method"),
    ("task", "backbone", "method"),
    ("backbone", "method"),
    ("task", "backbone"),
    ("backbone",),
    (),
)
SAME_KIND = NEAREST[:2]


@dataclass(frozen=True)
class Estimate:
    """How long the cells that are not done will train.

    Attributes:
        seconds: of training, one cell at a time; None where no cell is done.
        left: cells that are not done; those that are running count whole.
        finished: cells that the estimate rests on.
        far: cells of which none with the same task, backbone, pretraining and method is done.
        devices: what the finished cells were trained on.
    """

    seconds: float | None
    left: int
    finished: int
    far: int
    devices: tuple[str, ...]


def estimate(found: Mapping[Cell, CellStatus]) -> Estimate:
    """Estimate how long the cells that are not done will train."""
    costs = {cell: status.cost for cell, status in found.items() if status.cost is not None}
    left = [cell for cell, status in found.items() if status.state != DONE]
    devices = tuple(sorted({str(cost["device"]) for cost in costs.values()}))
    if not costs:
        return Estimate(None, len(left), 0, len(left), devices)
    by_likeness = [_sorted_by(fields, costs) for fields in NEAREST]
    scans = _scans_per_percent(costs)
    seconds, far = 0.0, 0
    for alike in _sorted_by(NEAREST[0], left).values():  # seeds and folds alone differ
        fields, near = next(
            (fields, near)
            for fields, kinds in zip(NEAREST, by_likeness, strict=True)
            if (near := kinds.get(_kind(alike[0], fields)))
        )
        far += len(alike) * (fields not in SAME_KIND)
        seconds += len(alike) * mean(_scaled(costs[other], other, alike[0], scans) for other in near)
    return Estimate(seconds, len(left), len(costs), far, devices)


def _kind(cell: Cell, fields: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(getattr(cell, field) for field in fields)


def _sorted_by(fields: tuple[str, ...], some: Iterable[Cell]) -> dict[tuple[object, ...], list[Cell]]:
    kinds: dict[tuple[object, ...], list[Cell]] = {}
    for cell in some:
        kinds.setdefault(_kind(cell, fields), []).append(cell)
    return kinds


def _scans_per_percent(costs: Mapping[Cell, Cost]) -> dict[str, float]:
    """Return how many training scans a percent of each task's subjects has, of tasks with finished cells."""
    of_task: dict[str, list[float]] = {}
    for cell, cost in costs.items():
        of_task.setdefault(cell.task, []).append(cost["train_scans"] / cell.fraction)
    return {task: mean(values) for task, values in of_task.items()}


def _scaled(cost: Cost, trained: Cell, cell: Cell, scans: Mapping[str, float]) -> float:
    """Return the seconds of a trained cell, in proportion to the scans that another is trained on.

    Where nothing is known of the other's task, it is taken to have as many scans.
    """
    if (trained.task, trained.fraction) == (cell.task, cell.fraction):
        return cost["train_seconds"]
    per_percent = scans.get(cell.task, scans[trained.task])
    return cost["train_seconds"] * per_percent * cell.fraction / cost["train_scans"]
