"""Which cells have been trained with the settings and from the files that they have now, without torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from neuropeft.config import Config
from neuropeft.grid import Cell, cell_spec, cells
from neuropeft.train.state import CELL_FILES, FINISHED, is_finished, trained_spec

Base = tuple[str, str, str, str]  # task, backbone, pretraining, method: of cells that are predicted together


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
    state = state_folder(results, cell)
    places = [state / FINISHED] if is_finished(state) else []
    taken = results / "cells" / cell.path
    if all((taken / name).is_file() for name in CELL_FILES):
        places.append(taken)
    if not places:
        return None
    wanted = cell_spec(config, cell)
    deltas = {place: place / CELL_FILES[0] for place in places}
    return next(
        (
            place
            for place, delta in deltas.items()
            if trained_spec(delta) == wanted and not _is_older(delta, _made_from(config, results, cell))
        ),
        None,
    )


def _made_from(config: Config, results: Path, cell: Cell) -> list[Path]:
    return [
        results / "pretraining" / cell.pretraining / cell.backbone / "encoder.safetensors",
        results / "splits" / cell.task / f"seed-{cell.seed}.tsv",
        results / "cohorts" / config.tasks[cell.task].train / "store" / "volumes.npy",
    ]


def _is_older(file: Path, others: Iterable[Path]) -> bool:
    try:
        made = file.stat().st_mtime_ns
        return any(other.exists() and other.stat().st_mtime_ns > made for other in others)
    except FileNotFoundError:
        return True


def deltas_by_base(finished: Mapping[Cell, Path]) -> dict[Base, dict[Cell, Path]]:
    """Return the deltas of the finished cells that are predicted together."""
    found: dict[Base, dict[Cell, Path]] = {}
    for cell, folder in finished.items():
        base = (cell.task, cell.backbone, cell.pretraining, cell.method)
        found.setdefault(base, {})[cell] = folder / CELL_FILES[0]
    return found


def predicted_from(predictions: Path, deltas: Iterable[Path]) -> bool:
    """Whether the file of predictions is there and is not older than any of the deltas."""
    try:
        made = predictions.stat().st_mtime_ns
        return all(delta.stat().st_mtime_ns <= made for delta in deltas)
    except FileNotFoundError:
        return False
