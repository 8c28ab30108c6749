"""Which cells have been trained with the settings that the configuration gives them; torch is not needed."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuropeft.config import Config
from neuropeft.grid import Cell, cell_spec, cells
from neuropeft.train.state import CELL_FILES, FINISHED, is_finished

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
    Whether code or data have changed since is not looked at.
    """
    state = state_folder(results, cell)
    places = [state / FINISHED] if is_finished(state) else []
    taken = results / "cells" / cell.path
    if all((taken / name).is_file() for name in CELL_FILES):
        places.append(taken)
    if not places:
        return None
    wanted = cell_spec(config, cell)
    return next((place for place in places if _trained_spec(place / CELL_FILES[0]) == wanted), None)


def _trained_spec(delta: Path) -> dict[str, Any] | None:
    """Return the settings that a delta was trained with, from the header of the safetensors file."""
    try:
        with delta.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        return json.loads(header["__metadata__"]["spec"])
    except (OSError, ValueError, KeyError, struct.error):
        return None  # deleted or replaced this moment, or damaged: not a cell that is done


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
