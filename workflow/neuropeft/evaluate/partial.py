"""Scores of what is finished while the rest is not: which files hold its predictions."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.contenders import score_spec, scored_together
from neuropeft.evaluate.score import Entry, Find, prediction_file, score
from neuropeft.finished import deltas_by_base, made_after
from neuropeft.grid import Cell
from neuropeft.progress import track


def score_all(config: Config, results: Path, out: Path, find: Find | None = None) -> None:
    """Score everything that the grid asks for, as far as it is predicted.

    Args:
        config: the configuration.
        results: the results folder.
        out: the folder for `scores`.
        find: which file holds predictions, see `score`.

    Raises:
        UserError: a prediction file cannot be read.
    """
    together = scored_together(config)
    for scored, some in track(together.items(), len(together), "scores"):
        table, draws = (place.at(out, scored=scored) for place in (layout.SCORES, layout.SCORE_DRAWS))
        score(score_spec(config, some), results, table, draws, find)


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
    def folder(entry: Entry, cohort: str) -> Path:
        of_base = deltas.get((entry.task, *entry.line), {}).values()
        whole = made_after(prediction_file(results, entry, cohort), of_base)
        return results if whole else layout.PARTIAL.at(results)

    def find(entry: Entry, cohort: str, seed: int, fold: int) -> Path | None:
        if entry.sort != "cells":
            return prediction_file(results, entry, cohort, seed, fold)
        cell = Cell(entry.task, *entry.line, entry.subset, seed, fold)
        delta = deltas.get(cell.base, {}).get(cell)
        path = prediction_file(folder(entry, cohort), entry, cohort)
        return path if delta is not None and made_after(path, [delta]) else None

    return find
