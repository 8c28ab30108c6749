"""Packs: which cells one fine-tune job trains.

The cells of a pack share a task, a backbone, a method and the encoder that they start from, and so the
volumes and the base weights, which the job loads once. Where each fold has an encoder of its own, packs do
not mix folds.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from neuropeft.cohorts.chunks import assign_chunks
from neuropeft.config import Config
from neuropeft.grid import Cell, encoder_fold, names_of
from neuropeft.grouping import grouped


class Pack(NamedTuple):
    """Some cells that one job trains, one after another."""

    task: str
    backbone: str
    pretraining: str
    method: str
    name: str

    @property
    def names(self) -> dict[str, Any]:
        """What places of `layout` call it by."""
        return {**names_of(self[:4]), "pack": self.name}


def packs(config: Config, cells: Iterable[Cell]) -> dict[Pack, list[Cell]]:
    """Return the packs of some cells, sorted; none has more than `config.cells_per_job`."""
    shared = grouped(sorted(cells), lambda cell: (cell.base, encoder_fold(config, cell)))
    found: dict[Pack, list[Cell]] = {}
    for (base, fold), members in shared.items():
        names = assign_chunks([(cell.path, cell.path) for cell in members], config.cells_per_job)
        prefix = f"fold-{fold}_" if fold else ""
        for cell in members:
            found.setdefault(Pack(*base, prefix + names[cell.path]), []).append(cell)
    return found


def pack_of(members: Mapping[Pack, Iterable[Cell]]) -> dict[Cell, Pack]:
    """Return the pack of every cell."""
    return {cell: pack for pack, cells in members.items() for cell in cells}
