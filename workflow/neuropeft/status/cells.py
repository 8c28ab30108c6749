"""What has become of every cell of the grid, and of the packs that train them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.evaluate.costs import read_cost
from neuropeft.files import last_lines
from neuropeft.finished import finished_folder, state_folder
from neuropeft.grid import Cell, cell_spec, cells
from neuropeft.packs import Pack, packs
from neuropeft.train.lock import held
from neuropeft.train.state import why_failed

DONE, RUNNING, FAILED, MISSING = STATES = ("done", "running", "failed", "missing")


@dataclass(frozen=True)
class Standing:
    """What has become of a cell.

    Attributes:
        state: one of `STATES`.
        cost: what its training cost, of a cell that is done.
        reason: why it failed, of a cell that failed.
    """

    state: str
    cost: dict[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Stopped:
    """A pack that is not trained though its job has begun, with no word of a failure: it ended, or waits.

    Attributes:
        log: the log of its job.
        last_line: the last line of the log; empty if it has none.
        missing: how many of its cells are missing.
    """

    log: Path
    last_line: str
    missing: int


def standings(config: Config, results: Path) -> dict[Cell, Standing]:
    """Return what has become of every cell; each is in exactly one state.

    A cell that is trained again after a failure is running; one that failed when it was to be trained anew
    has failed, whatever an earlier training left.
    """
    return {cell: _standing(config, results, cell) for cell in cells(config)}


def _standing(config: Config, results: Path, cell: Cell) -> Standing:
    state = state_folder(results, cell)
    if held(state):
        return Standing(RUNNING)
    if (reason := why_failed(state)) is not None:
        # The settings' own name of the cell is what reasons begin with; a list of cells need not repeat it.
        return Standing(FAILED, reason=reason.removeprefix(f"{cell_spec(config, cell)['cell']}: "))
    if (folder := finished_folder(config, results, cell)) is not None:
        with suppress(FileNotFoundError):  # the workflow replaces the files this very moment
            return Standing(DONE, read_cost(folder / "cost.json"))
    return Standing(MISSING)


def pack_log(results: Path, pack: Pack) -> Path:
    """Return the log of a pack's job."""
    return layout.FINETUNE_LOG.at(results, **pack.names)


def failed_by_log(config: Config, results: Path, found: Mapping[Cell, Standing]) -> dict[Path, list[Cell]]:
    """Return the cells that failed, by the log of their pack's job."""
    failed = {}
    for pack, members in packs(config, found).items():
        if cells_of_pack := [cell for cell in members if found[cell].state == FAILED]:
            failed[pack_log(results, pack)] = cells_of_pack
    return failed


def stopped_packs(config: Config, results: Path, found: Mapping[Cell, Standing]) -> list[Stopped]:
    """Return the packs whose log is there and whose table is not, though nothing of them trains or failed."""
    stopped = []
    for pack, members in packs(config, found).items():
        states = [found[cell].state for cell in members]
        log = pack_log(results, pack)
        trained = layout.PACK.at(results, **pack.names)
        if (
            MISSING in states
            and not {RUNNING, FAILED} & set(states)
            and log.exists()
            and not trained.exists()
        ):
            last_line = next(reversed(last_lines(log)), "")
            stopped.append(Stopped(log, last_line, states.count(MISSING)))
    return stopped
