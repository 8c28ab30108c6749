"""Predictions of the cells that are finished while others are not: which file holds them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from neuropeft import layout
from neuropeft.evaluate.scores import CONTROL, Find, prediction_file
from neuropeft.finished import deltas_by_base, made_after
from neuropeft.grid import Cell, Group
from neuropeft.probe_grid import is_probe


def find_partial(results: Path, finished: Mapping[Cell, Path]) -> Find:
    """Return what finds the predictions of a cell that is finished, and nothing for others.

    A group's file is used if it was made from all its finished cells as they are now; otherwise that of
    `predict_partial`, which need not have seen the newest cells.

    Args:
        results: the results folder.
        finished: folder of each finished cell's delta.
    """
    deltas = deltas_by_base(finished)

    @cache
    def folder(group: Group, cohort: str) -> Path:
        of_group = deltas.get(_cell(group, 0, 0).base, {}).values()
        whole = made_after(prediction_file(results, group, cohort), of_group)
        return results if whole else layout.PARTIAL.at(results)

    def find(group: Group, cohort: str, seed: int, fold: int) -> Path | None:
        if group.backbone == CONTROL or is_probe(group):
            return prediction_file(results, group, cohort, seed, fold)
        cell = _cell(group, seed, fold)
        delta = deltas.get(cell.base, {}).get(cell)
        path = prediction_file(folder(group, cohort), group, cohort)
        return path if delta is not None and made_after(path, [delta]) else None

    return find


def _cell(group: Group, seed: int, fold: int) -> Cell:
    return Cell(group.task, group.backbone, group.pretraining, group.method, group.subset, seed, fold)
