"""Predictions of the cells that are finished while others are not: which file holds them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from neuropeft.evaluate.scores import CONTROL, Find, Group, prediction_file
from neuropeft.finished import deltas_by_base, predicted_from
from neuropeft.grid import Cell


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
        base = (group.task, group.backbone, group.pretraining, group.method)
        whole = predicted_from(prediction_file(results, group, cohort, 0), deltas.get(base, {}).values())
        return results if whole else results / "partial"

    def find(group: Group, cohort: str, seed: int) -> Path | None:
        if group.backbone == CONTROL:
            return prediction_file(results, group, cohort, seed)
        base = (group.task, group.backbone, group.pretraining, group.method)
        delta = deltas.get(base, {}).get(Cell(*base, group.fraction, seed))
        path = prediction_file(folder(group, cohort), group, cohort, seed)
        return path if delta is not None and predicted_from(path, [delta]) else None

    return find
