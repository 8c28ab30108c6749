"""Which cells have been trained with the settings and from the files that they have now, without torch."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.cohorts.splits import SPLIT_COLUMNS, make_split, read_usable
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.evaluate.costs import cell_folder
from neuropeft.files import format_tsv
from neuropeft.grid import Base, Cell, cell_spec, cells, encoder_of
from neuropeft.tasks import kind_of
from neuropeft.train.state import CELL_FILES, FINISHED, is_finished, trained_spec

Stamp = tuple[Path, int]  # a file and its time


def state_folder(results: Path, cell: Cell) -> Path:
    """Return the folder that holds the state of a cell's training."""
    return layout.CELL_STATE.at(results, **cell.names)


def finished_cells(config: Config, results: Path) -> dict[Cell, Path]:
    """Return the cells of the grid that have been trained, with the folder of each one's delta and cost."""
    found = {cell: finished_folder(config, results, cell) for cell in cells(config)}
    return {cell: folder for cell, folder in found.items() if folder is not None}


def finished_folder(config: Config, results: Path, cell: Cell) -> Path | None:
    """Return the folder of a cell's delta and cost; None if it has not been trained with these settings.

    That is where training leaves them, or, where the states have been deleted, where the workflow takes them.
    A delta that is older than its encoder, split or volumes does not count: with a new encoder it makes no
    network, and a new split may test on whom it was trained on. Nor does one whose split would be another
    one by now. Whether code has changed is not looked at.
    """
    state, taken = state_folder(results, cell), cell_folder(results, cell)
    if not _split_is_current(config, results, cell):
        return None
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
    encoder = encoder_of(config, cell)
    return [
        *([layout.ENCODER.at(results, **encoder.names)] if encoder else []),
        layout.SPLIT.at(results, **cell.names),
        layout.VOLUMES.at(results, cohort=config.tasks[cell.task].train),
    ]


def _split_is_current(config: Config, results: Path, cell: Cell) -> bool:
    """Whether settings and labels still give the split of a cell; so too where a file of it is not there."""
    task = config.tasks[cell.task]
    labels = layout.LABELS.at(results, task=cell.task, cohort=task.train)
    stored = layout.STORED_SCANS.at(results, cohort=task.train)
    split = layout.SPLIT.at(results, **cell.names)
    shares = config.splits
    try:
        stamps = tuple((path, path.stat().st_mtime_ns) for path in (labels, stored, split))
    except FileNotFoundError:
        return True
    return _gives(
        *stamps,
        cell.seed,
        shares.test_share,
        shares.validation,
        kind_of(task),
        cell.task,
        cell.fold,
        shares.folds or 0,
    )


@cache  # once for all cells of a task and a seed, until a file changes
def _gives(labels: Stamp, stored: Stamp, split: Stamp, *settings: Any) -> bool:
    try:
        rows = make_split(read_usable(labels[0], stored[0]), *settings)
        return split[0].read_text(encoding="utf-8") == format_tsv(rows, SPLIT_COLUMNS)
    except (UserError, FileNotFoundError):  # too few subjects by now; the workflow says so
        return False


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
