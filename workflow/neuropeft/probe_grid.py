"""Which probes the grid asks for, and where their files are.

A probe is a small model on the tokens of a frozen backbone. It costs seconds, so it runs beside the
fine-tunes of every backbone and start, and beside the untrained backbone (start `none`): a fine-tune that
loses to it is badly tuned, and an encoder whose probe does not beat that of the untrained one has learnt
nothing that the task can use.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from neuropeft import layout
from neuropeft.grid import NO_PRETRAINING, Cell, Group, subsets_of
from neuropeft.probe_names import PROBES


class Probed(NamedTuple):
    """What one job fits all probes on: a task and an encoder."""

    task: str
    backbone: str
    pretraining: str


def probed(cells: Iterable[Cell]) -> list[Probed]:
    """Return every task and backbone of some cells with each of their starts and with `none`, sorted."""
    found = {Probed(cell.task, cell.backbone, cell.pretraining) for cell in cells}
    return sorted(found | {one._replace(pretraining=NO_PRETRAINING) for one in found})


def probe_groups(cells: Iterable[Cell]) -> list[Group]:
    """Return the groups of all probes of some cells: each at every subset that its task's cells use."""
    cells = list(cells)
    subsets = {task: subsets_of(cells, task) for task in {cell.task for cell in cells}}
    return [
        (*one, probe, subset) for one in probed(cells) for probe in PROBES for subset in subsets[one.task]
    ]


# -- files -----------------------------------------------------------------------------------------


def probe_folder(results: Path, one: Probed, split: str) -> Path:
    """Return the folder of the predictions of all probes on an encoder, fitted on a split."""
    return layout.PROBES.at(results, **one._asdict(), split=split)
