"""Packs: which cells one fine-tune job trains.

The cells of a pack share a task, a backbone, a pretraining, a method and a fold, and so the volumes and the
base weights, which the job loads once; those of a fold need not wait for the encoders of others. Packs that
differ in the fold alone are predicted together, so where one of their cells is trained anew, its neighbours'
predictions have to be renewed in any case.
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
    shared: dict[tuple[Base, int], list[Cell]] = {}
    for cell in sorted(cells):
        shared.setdefault((cell.base, cell.fold), []).append(cell)
    found: dict[Pack, list[Cell]] = {}
    for (base, fold), members in shared.items():
        names = assign_chunks([(cell.path, cell.path) for cell in members], cells_per_job)
        prefix = f"fold-{fold}_" if fold else ""
        for cell in members:
            found.setdefault(Pack(*base, prefix + names[cell.path]), []).append(cell)
    return found


def pack_of(members: Mapping[Pack, Iterable[Cell]]) -> dict[Cell, Pack]:
    """Return the pack of every cell."""
    return {cell: pack for pack, cells in members.items() for cell in cells}
