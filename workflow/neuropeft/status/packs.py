"""What has become of the packs that train the cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.status import FAILED, MISSING, RUNNING, CellStatus
from neuropeft.config import Config
from neuropeft.files import last_lines
from neuropeft.grid import Cell
from neuropeft.packs import Pack, packs


@dataclass(frozen=True)
class Stopped:
    """A pack that is not trained though its job has begun, with no word of a failure: it ended, or waits."""

    log: Path  # the log of its job
    last_line: str  # the last line of the log; empty if it has none
    missing: int  # how many of its cells are missing


def pack_log(results: Path, pack: Pack) -> Path:
    """Return the log of a pack's job."""
    return layout.FINETUNE_LOG.at(results, **pack.names)


def failed_by_log(config: Config, results: Path, found: Mapping[Cell, CellStatus]) -> dict[Path, list[Cell]]:
    """Return the cells that failed, by the log of their pack's job."""
    failed = {}
    for pack, members in packs(config, found).items():
        if cells_of_pack := [cell for cell in members if found[cell].state == FAILED]:
            failed[pack_log(results, pack)] = cells_of_pack
    return failed


def stopped_packs(config: Config, results: Path, found: Mapping[Cell, CellStatus]) -> list[Stopped]:
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
