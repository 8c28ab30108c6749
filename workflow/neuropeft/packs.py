"""Packs: which cells one fine-tune job trains.

The cells of a pack share a task, a backbone, a pretraining and a method, and so the volumes and the base
weights, which the job loads once. They are predicted together too, so where one of them is trained anew, its
neighbours' predictions have to be renewed in any case.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neuropeft.cohorts.chunks import assign_chunks
from neuropeft.grid import Base, Cell


@dataclass(frozen=True, order=True)
class Pack:
    """Some cells that one job trains, one after another."""

    task: str
    backbone: str
    pretraining: str
    method: str
    name: str

    @property
    def path(self) -> str:
        """Where its table and its log are, below their folders and without a suffix."""
        return f"{self.task}/{self.backbone}/{self.pretraining}/{self.method}/{self.name}"


def packs(cells: Iterable[Cell], cells_per_job: int) -> dict[Pack, list[Cell]]:
    """Return the packs of a grid and their cells, sorted; none has more than `cells_per_job`."""
    shared: dict[Base, list[Cell]] = {}
    for cell in sorted(cells):
        shared.setdefault(cell.base, []).append(cell)
    found: dict[Pack, list[Cell]] = {}
    for base, members in shared.items():
        names = assign_chunks([(cell.path, cell.path) for cell in members], cells_per_job)
        for cell in members:
            found.setdefault(Pack(*base, names[cell.path]), []).append(cell)
    return found


def pack_of(members: Mapping[Pack, Iterable[Cell]]) -> dict[Cell, Pack]:
    """Return the pack of every cell."""
    return {cell: pack for pack, cells in members.items() for cell in cells}
