"""What cells cost: their cost.json files, beside the cells that are not there yet."""

import json
from pathlib import Path
from typing import Any

from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.grid import Cell, cells

COST_KEYS = (
    "trainable",
    "head",
    "total",
    "delta_bytes",
    "peak_memory_bytes",
    "train_seconds",
    "start_seconds",
    "seconds_per_epoch",
    "epochs",
    "best_epoch",
    "best_val_loss",
    "train_subjects",
    "train_scans",
    "flops_per_sample",
    "device",
    "torch",
    "resumed",
)


def cell_folder(results: Path, cell: Cell) -> Path:
    """Return the folder of a cell's delta, history and cost."""
    cell_path = Path(cell.task, cell.backbone, cell.pretraining, cell.method)
    return results / "cells" / cell_path / f"fraction-{cell.fraction}" / f"seed-{cell.seed}"


def read_costs(config: Config, results: Path) -> dict[Cell, dict[str, Any] | None]:
    """Read the cost of every cell of the grid; None for a cell that has not run.

    Raises:
        UserError: a cost file is no JSON.
    """
    costs: dict[Cell, dict[str, Any] | None] = {}
    for cell in cells(config):
        path = cell_folder(results, cell) / "cost.json"
        try:
            costs[cell] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise UserError(f"{path} is no JSON ({error}): delete it and run the workflow again") from error
    return costs
