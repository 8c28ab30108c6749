"""Scores of what is finished while the rest is not: which files hold its predictions."""

from functools import cache
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.status import Cells
from neuropeft.config import Config
from neuropeft.contenders import contenders, score_spec, scored_together
from neuropeft.evaluate.score import Entry, Find, prediction_file, score
from neuropeft.grid import Cell
from neuropeft.progress import track


def score_all(config: Config, results: Path, out: Path, find: Find | None = None) -> None:
    """Score everything that the grid asks for, as far as it is predicted.

    `find` says which file holds predictions, see `score`; `out` gets `scores`.

    Raises:
        UserError: a prediction file cannot be read.
    """
    together = scored_together(contenders(config))
    for scored, some in track(together.items(), len(together), "scores"):
        table, draws = (place.at(out, scored=scored) for place in (layout.SCORES, layout.SCORE_DRAWS))
        score(score_spec(config, some), results, table, draws, find)


def find_partial(cells: Cells) -> Find:
    """Return what finds the predictions of a cell that is finished, and nothing for others.

    A group's file is used if it was made from all its finished cells as they are now; otherwise that of
    `predict_partial`, which need not have seen the newest cells.
    """

    @cache
    def predicted(entry: Entry, cohort: str) -> tuple[Path, set[Cell]]:
        whole, base = prediction_file(cells.results, entry, cohort), (entry.task, *entry.line)
        if (found := cells.predicted(base, whole)) == cells.deltas.get(base, {}).keys():
            return whole, found
        part = prediction_file(layout.PARTIAL.at(cells.results), entry, cohort)
        return part, cells.predicted(base, part)

    def find(entry: Entry, cohort: str, seed: int, fold: int) -> Path | None:
        if entry.sort != "cells":
            return prediction_file(cells.results, entry, cohort, seed, fold)
        path, found = predicted(entry, cohort)
        return path if Cell(entry.task, *entry.line, entry.subset, seed, fold) in found else None

    return find
