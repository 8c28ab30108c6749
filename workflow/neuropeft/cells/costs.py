"""What cells cost: their cost.json files, beside the cells that are not there yet."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.grid import Cell, Group, cells
from neuropeft.records import AGAIN
from neuropeft.subsets import Subset

Costs = Mapping[Cell, dict[str, Any] | None]

COST_KEYS = (
    "trainable",
    "head",
    "total",
    "stored",
    "modules",
    "tensors",
    "delta_bytes",
    "peak_memory_bytes",
    "peak_reserved_bytes",
    "train_seconds",
    "start_seconds",
    "seconds_per_step",
    "samples_per_second",
    "mfu",
    "energy_joule",
    "steps",
    "most_steps",
    "best_step",
    "best_val_loss",
    "train_subjects",
    "train_scans",
    "flops_per_sample",
    "device",
    "torch",
    "resumed",
    "accumulation",
    "chosen_lr",
    "chosen_head_lr",
)


def cell_folder(results: Path, cell: Cell) -> Path:
    """Return the folder of a cell's delta, history and cost."""
    return layout.CELL.at(results, **cell.names)


def read_costs(config: Config, results: Path) -> dict[Cell, dict[str, Any] | None]:
    """Read the cost of every cell of the grid; None for a cell that has not run.

    Raises:
        UserError: a cost file is no JSON.
    """
    paths = {cell: cell_folder(results, cell) / "cost.json" for cell in cells(config)}
    return {cell: read_cost(path) if path.is_file() else None for cell, path in paths.items()}


def read_cost(path: Path) -> dict[str, Any]:
    """Read a cell's cost.

    Raises:
        UserError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): {AGAIN}") from error


def trainable_parameters(costs: Costs) -> dict[Group, int]:
    """Return the trainable parameters of each group of cells; seeds do not change them."""
    return {
        cell.group: int(cost["trainable"])
        for cell, cost in costs.items()
        if cost is not None and cost.get("trainable") is not None
    }


def subset_sizes(costs: Costs, task: str, counted: str) -> dict[Subset, int]:
    """Return how many training subjects, or scans, the cells of each subset of a task have had.

    `counted` is `train_subjects` or `train_scans`.
    """
    found: dict[Subset, list[int]] = {}
    for cell, cost in costs.items():
        if cell.task == task and cost is not None and cost.get(counted):
            found.setdefault(cell.subset, []).append(int(cost[counted]))
    return {subset: statistics.median_low(numbers) for subset, numbers in found.items()}
