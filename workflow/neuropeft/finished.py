"""Which cells have been trained with the settings and from the files that they have now, without torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from neuropeft.config import Config
from neuropeft.evaluate.costs import cell_folder
from neuropeft.grid import Base, Cell, cell_spec, cells
from neuropeft.train.state import CELL_FILES, FINISHED, is_finished, trained_spec


def state_folder(results: Path, cell: Cell) -> Path:
    """Return the folder that holds the state of a cell's training."""
    return results / "_state" / "cells" / cell.path


def finished_cells(config: Config, results: Path) -> dict[Cell, Path]:
    """Return the cells of the grid that have been trained, with the folder of each one's delta and cost."""
    found = {cell: finished_folder(config, results, cell) for cell in cells(config)}
    return {cell: folder for cell, folder in found.items() if folder is not None}


def finished_folder(config: Config, results: Path, cell: Cell) -> Path | None:
    """Return the folder of a cell's delta and cost; None if it has not been trained with these settings.

    That is where training leaves them, or, where the states have been deleted, where the workflow takes them.
    A delta that is older than its encoder, split or volumes does not count: with a new encoder it makes no
    network, and a new split may test on whom it was trained on. Whether code has changed is not looked at.
    """
    state, taken = state_folder(results, cell), cell_folder(results, cell)
    complete = {
        state / FINISHED: is_finished(state),
        taken: all((taken / name).is_file() for name in CELL_FILES),
    }
    for place in (place for place, is_complete in complete.items() if is_complete):
        delta = place / CELL_FILES[0]
        made_from = [path for path in _made_from(config, results, cell) if path.exists()]
        if trained_spec(delta) == cell_spec(config, cell) and made_after(delta, made_from):
            return place
    return None


def _made_from(config: Config, results: Path, cell: Cell) -> list[Path]:
    return [
        results / "pretraining" / cell.pretraining / cell.backbone / "encoder.safetensors",
        results / "splits" / cell.task / f"seed-{cell.seed}.tsv",
        results / "cohorts" / config.tasks[cell.task].train / "store" / "volumes.npy",
    ]


def deltas_by_base(finished: Mapping[Cell, Path]) -> dict[Base, dict[Cell, Path]]:
    """Return the deltas of the finished cells that are predicted together."""
    found: dict[Base, dict[Cell, Path]] = {}
    for cell, folder in finished.items():
        found.setdefault(cell.base, {})[cell] = folder / CELL_FILES[0]
    return found


def made_after(file: Path, others: Iterable[Path]) -> bool:
    """Whether the file is there and is not older than any of the others, which are there too."""
    try:
        made = file.stat().st_mtime_ns
        return all(other.stat().st_mtime_ns <= made for other in others)
    except FileNotFoundError:
        return False
