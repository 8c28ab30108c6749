"""Which cell of a task is exported.

Validation chooses the method, as it chooses everything; test scores are then what one may expect. The seed
and the fold are the first ones: among seeds the best one on validation would be the luckiest, and the spread
of its errors there too small for an interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from neuropeft import layout
from neuropeft.cells.costs import read_cost
from neuropeft.cells.status import Cells
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders
from neuropeft.errors import UserError, suggest
from neuropeft.grid import Cell, cells, encoder_of, used_tasks
from neuropeft.tasks import kind_of


@dataclass(frozen=True)
class Chosen:
    """A trained cell, and why it was chosen."""

    cell: Cell  # the cell
    contender: Contender  # its group, whose scores are reported
    # mean validation loss of each contender it was chosen among, by label, the lowest first
    losses: Mapping[str, float]
    delta: Path  # its delta
    encoder: Path | None  # the encoder that it starts from; None from random weights


def choose(config: Config, results: Path, task: str) -> Chosen:
    """Return the first cell of the method with the lowest validation loss, of those that learn from most.

    Methods are compared by the mean over the seeds and folds that all of them have. One with cells that are
    not finished does not take part, which a line says.

    Raises:
        UserError: the grid has no such task, or no method of it is finished.
    """
    if task not in (tasks := used_tasks(config)):
        raise UserError(f"`--task {task}` is no task of the grid; {suggest(task, tasks)}")
    if kind_of(config.tasks[task]).decoder:
        raise UserError(
            f"task {task} predicts label maps or images, which `export` does not know; choose another task"
        )
    finished = Cells(config, results).finished
    of_task = [one for one in contenders(config) if one.task == task and one.is_method]
    most = max(one.subset for one in of_task)
    found: dict[Contender, list[Cell]] = {}
    for one in of_task:
        own = [cell for cell in cells(config) if cell.group == one.group]
        if one.subset == most and all(cell in finished for cell in own):
            found[one] = own
        elif one.subset == most:
            print(f"{one.label} does not take part: not all of its cells are finished")
    if not found:
        raise UserError(f"no method of task {task} is finished in {results}; run the workflow first")
    common = set.intersection(*({(cell.seed, cell.fold) for cell in own} for own in found.values()))
    if not common:
        raise UserError(
            f"the methods of task {task} have no seed in common to be compared by; give `grid` one that all "
            "have"
        )
    losses = {
        one: fmean(
            read_cost(finished[cell] / "cost.json")["best_val_loss"]
            for cell in own
            if (cell.seed, cell.fold) in common
        )
        for one, own in found.items()
    }
    best, *_ = order = sorted(losses, key=lambda one: losses[one])
    cell = min(cell for cell in found[best] if (cell.seed, cell.fold) in common)
    encoder = encoder_of(config, cell)
    return Chosen(
        cell,
        best,
        {one.label: losses[one] for one in order},
        finished[cell] / "delta.safetensors",
        None if encoder is None else layout.ENCODER.at(results, **encoder.names),
    )
