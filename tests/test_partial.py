"""Of what partial tables are made: the cells that are finished, as they are now, and checked."""

from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest

import planned
from neuropeft.cells.status import Cells, state_folder
from neuropeft.config.read import read_config
from neuropeft.evaluate.partial import find_partial
from neuropeft.evaluate.score import Entry, prediction_file
from neuropeft.grid import Cell
from neuropeft.records import write_record
from neuropeft.subsets import fraction
from neuropeft.train.state import CELL_FILES, FINISHED
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
        find = find_partial(Cells(CONFIG, results))
        return [find(ENTRY, "SimA", cell.seed, cell.fold) for cell in CELLS]

    def predict(path: Path) -> None:
        deltas = Cells(CONFIG, results).delta_digests(CELLS[0].base)
        write_record([write(path, "predictions")], {"deltas": deltas})

    def train_first_anew(text: str) -> None:
        folder = state_folder(results, CELLS[0]) / FINISHED
        write(folder / "delta.safetensors", text)
        write_record([folder / name for name in CELL_FILES], Cells(CONFIG, results).expected(CELLS[0]))

    whole, partial = (prediction_file(place, ENTRY, "SimA", 0) for place in (results, results / "partial"))
    assert found() == [None, None]
    predict(whole)
    assert found() == [whole, whole]
    train_first_anew("a second time")
    assert found() == [None, None], "the group's file is renewed as a whole"
    predict(partial)
    assert found() == [partial, partial]
    train_first_anew("a third time")
    assert found() == [None, partial]
    write(partial, "predictionS")
    assert found() == [None, None], "a damaged file is not read"


def test_a_seed_that_is_not_checked_yet_does_not_hide_the_others(results: Path) -> None:
    for report in ("SimB-seed-1.tsv", "pretraining-mae/SimB.tsv"):
        write(results / "splits/ad/leaks" / report)
    workflow = planned.read(results.parent, "--configfile", TINY, "--mode", "subprocess")
    group = SimpleNamespace(task="ad", backbone="vit_xxs", pretraining="mae", method="lora", cohort="SimB")
    with chdir(results.parent):
        inputs = workflow.globals["PARTIAL"].inputs(group)
    checked = Cells(CONFIG, results).finished[CELLS[1]] / "delta.safetensors"
    assert inputs["deltas"] == [str(checked)]
    assert [Path(path).name for path in inputs["leaks"]] == ["SimB-seed-1.tsv", "SimB.tsv"]
