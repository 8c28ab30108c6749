"""How long the cells that are not done will train, judged by those that are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from neuropeft.cells.status import DONE, CellStatus
from neuropeft.grid import Cell
from neuropeft.grouping import grouped

Cost = dict[str, Any]

# What a finished cell must share with the one that it is judged by; the first of these that some cell fulfils
# counts. Seconds are those of cells of the same subset, or scaled by the number of training scans.
NEAREST: tuple[tuple[str, ...], ...] = (
    ("task", "backbone", "pretraining", "method", "subset"),
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
    """How long the cells that are not done will train."""

    seconds: float | None  # of training, one cell at a time; None where no cell is done
    left: int  # cells that are not done; those that are running count whole
    finished: int  # cells that the estimate rests on
    far: int  # cells of which none with the same task, backbone, pretraining and method is done
    devices: tuple[str, ...]  # what the finished cells were trained on


def estimate(found: Mapping[Cell, CellStatus]) -> Estimate:
    """Estimate how long the cells that are not done will train."""
    costs = {cell: status.cost for cell, status in found.items() if status.cost is not None}
    left = [cell for cell, status in found.items() if status.state != DONE]
    devices = tuple(sorted({str(cost["device"]) for cost in costs.values()}))
    if not costs:
        return Estimate(None, len(left), 0, len(left), devices)
    by_likeness = [_sorted_by(fields, costs) for fields in NEAREST]
    scans = _scans_per_size(costs)
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
    return grouped(some, lambda cell: _kind(cell, fields))


def _scans_per_size(costs: Mapping[Cell, Cost]) -> dict[tuple[str, bool], float]:
    """Return how many training scans a percent, and a shot, of each task with finished cells has."""
    found: dict[tuple[str, bool], list[float]] = {}
    for cell, cost in costs.items():
        found.setdefault((cell.task, cell.subset.of_all), []).append(cost["train_scans"] / cell.subset.size)
    return {sort: mean(values) for sort, values in found.items()}


def _scaled(cost: Cost, trained: Cell, cell: Cell, scans: Mapping[tuple[str, bool], float]) -> float:
    """Return the seconds of a trained cell, in proportion to the scans that another is trained on.

    Where nothing is known of the other's task, it is taken to have as many scans.
    """
    if (trained.task, trained.subset) == (cell.task, cell.subset):
        return cost["train_seconds"]
    sort = cell.subset.of_all
    per_size = scans.get((cell.task, sort), scans.get((trained.task, sort)))
    if per_size is None:
        return cost["train_seconds"]
    return cost["train_seconds"] * per_size * cell.subset.size / cost["train_scans"]
