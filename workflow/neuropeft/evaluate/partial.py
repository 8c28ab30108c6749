"""Predictions of the cells that are finished while others are not: which file holds them as they are now."""

from functools import cache
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.status import Cells
from neuropeft.evaluate.scores import CONTROL, Find, prediction_file
from neuropeft.grid import Cell, Group
from neuropeft.probe_grid import is_probe


def find_partial(cells: Cells) -> Find:
    """Return what finds the predictions of a cell that is finished, and nothing for others.

    A group's file is used if it was made from all its finished cells as they are now; otherwise that of
    `predict_partial`, which need not have seen the newest cells.
    """

    @cache
    def predicted(group: Group, cohort: str) -> tuple[Path, set[Cell]]:
        whole = prediction_file(cells.results, group, cohort)
        base = _cell(group, 0, 0).base
        if (found := cells.predicted(base, whole)) == cells.deltas.get(base, {}).keys():
            return whole, found
        part = prediction_file(layout.PARTIAL.at(cells.results), group, cohort)
        return part, cells.predicted(base, part)

    def find(group: Group, cohort: str, seed: int, fold: int) -> Path | None:
        if group.backbone == CONTROL or is_probe(group):
            return prediction_file(cells.results, group, cohort, seed, fold)
        path, found = predicted(group, cohort)
        return path if _cell(group, seed, fold) in found else None

    return find


def _cell(group: Group, seed: int, fold: int) -> Cell:
    return Cell(group.task, group.backbone, group.pretraining, group.method, group.fraction, seed, fold)
