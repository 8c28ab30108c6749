"""Of what partial tables are made: the cells that are finished, as they are now, and checked."""

import os
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest

import planned
from neuropeft.config.read import read_config
from neuropeft.evaluate.partial import find_partial
from neuropeft.evaluate.score import Entry, prediction_file
from neuropeft.finished import finished_cells
from neuropeft.grid import Cell
from neuropeft.subsets import fraction
from test_status import TINY, finish_state, write

CONFIG = read_config(TINY, None)
ENTRY = Entry("cells", "ad", ("vit_xxs", "mae", "lora"), fraction(100), (0, 1))
CELLS = [Cell("ad", "vit_xxs", "mae", "lora", fraction(100), seed) for seed in (0, 1)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two finished cells of a group, predicted together."""
    results = tmp_path / "results"
    for cell in CELLS:
        finish_state(CONFIG, results, cell)
    return results


def test_a_cell_that_was_trained_anew_is_not_shown_with_its_old_predictions(results: Path) -> None:
    def found() -> list[Path | None]:
        find = find_partial(results, finished_cells(CONFIG, results))
        return [find(ENTRY, "SimA", cell.seed, cell.fold) for cell in CELLS]

    def made(path: Path, minute: int) -> None:
        os.utime(path, (60 * minute, 60 * minute))

    whole, partial = (prediction_file(place, ENTRY, "SimA", 0) for place in (results, results / "partial"))
    first, second = (finished_cells(CONFIG, results)[cell] / "delta.safetensors" for cell in CELLS)
    assert found() == [None, None]
    made(first, 1)
    made(second, 1)
    made(write(whole), 2)
    assert found() == [whole, whole]
    made(first, 3)
    assert found() == [None, None], "the group's file is renewed as a whole"
    made(write(partial), 4)
    assert found() == [partial, partial]
    made(first, 5)
    assert found() == [None, partial]


def test_a_seed_that_is_not_checked_yet_does_not_hide_the_others(results: Path) -> None:
    for report in ("SimB-seed-1.tsv", "pretraining-mae/SimB.tsv"):
        write(results / "splits/ad/leaks" / report)
    workflow = planned.read(results.parent, "--configfile", TINY, "--mode", "subprocess")
    group = SimpleNamespace(task="ad", backbone="vit_xxs", pretraining="mae", method="lora", cohort="SimB")
    with chdir(results.parent):
        inputs = workflow.globals["PARTIAL"].inputs(group)
    checked = finished_cells(CONFIG, results)[CELLS[1]] / "delta.safetensors"
    assert inputs["deltas"] == [str(checked)]
    assert [Path(path).name for path in inputs["leaks"]] == ["SimB-seed-1.tsv", "SimB.tsv"]
