"""Cells that one process trains: the same results as alone, and one that fails leaves the others be."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import planned
import tiny_cells
from neuropeft import numerics
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import read_tensors, save_encoder
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from neuropeft.grid import Cell
from neuropeft.packs import pack_of, packs
from neuropeft.subsets import fraction
from neuropeft.train import finetune as finetuning
from neuropeft.train import loop
from neuropeft.train.history import write_history
from neuropeft.train.lock import held
from neuropeft.train.pack import finetune_pack
from neuropeft.train.signals import REQUEUE_EXIT_CODE
from neuropeft.train.sources import cell_sources
from neuropeft.train.state import (
    CELL_FILES,
    FAILED,
    FINISHED,
    is_finished,
    note_failure,
    take_over,
    why_failed,
)
from workflow_command import TINY, write_config

FULL = {"kind": "full"}
SPECS = {
    "lora": tiny_cells.cell(method=tiny_cells.LORA | {"dropout": 0.1}),
    "full half": tiny_cells.cell(method=FULL, subset="fraction-50"),
    "shuffled": tiny_cells.cell(method=FULL, shuffle_labels=True),
    "seed 1": tiny_cells.cell(method=FULL, seed=1),
}
BROKEN = tiny_cells.cell(method=FULL | {"lr": 1e30}, training={"augment": {}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = tiny_cells.make_store(tmp_path / "store")
    for seed in (0, 1):
        tiny_cells.make_split(tmp_path / f"seed-{seed}.tsv", store, validation=5 + seed)
    return tmp_path


def train(folder: Path, specs: dict, state: str = "state") -> list[str]:
    """Train a pack; return the outcome of each cell."""
    table, seeds = folder / "pack.tsv", sorted({spec["seed"] for spec in specs.values()})
    splits = [folder / f"seed-{seed}.tsv" for seed in seeds]
    finetune_pack(specs, folder / "store", splits, None, folder / state, table, device="cpu")
    return [row["outcome"] for row in read_tsv(table)]


def results(state: Path) -> tuple[dict, list]:
    """Return what a cell's training gave: its delta as lists, and its losses."""
    delta = read_tensors(state / FINISHED / "delta.safetensors")[0]
    history = tiny_cells.read_history(state / FINISHED)
    return {name: value.tolist() for name, value in delta.items()}, history


def test_a_packed_cell_gives_what_it_gives_alone(folder: Path) -> None:
    assert train(folder, SPECS) == ["trained"] * 4
    for name, spec in SPECS.items():
        train(folder, {name: spec}, state="alone")
        assert results(folder / "state" / name) == results(folder / "alone" / name)


CHANGED = SPECS | {"full half": tiny_cells.cell(method=FULL | {"lr": 1e-4}, subset="fraction-50")}


def test_trained_cells_are_kept_and_a_changed_one_is_trained_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = finetuning.load_volumes, []
    monkeypatch.setattr(finetuning, "load_volumes", lambda *given: loads.append(given) or load(*given))
    train(folder, SPECS)
    assert len(loads) == 1, "for all cells"
    assert train(folder, CHANGED) == ["kept", "trained", "kept", "kept"]
    assert train(folder, CHANGED) == ["kept"] * 4
    assert len(loads) == 2, "where all are kept, nothing is loaded"


def test_a_cell_whose_outcome_was_being_replaced_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(folder, {"full half": SPECS["full half"]})

    def die(path: Path, rows: list) -> None:
        raise KeyboardInterrupt  # the new delta is there, the old cost is too

    monkeypatch.setattr(finetuning, "write_history", die)
    with pytest.raises(KeyboardInterrupt):
        train(folder, {"full half": CHANGED["full half"]})
    assert not is_finished(folder / "state" / "full half")


def test_others_see_which_cell_is_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, seen, pair = finetuning.make_model, [], ("lora", "full half")

    def look(spec: dict, encoder: Path | None) -> object:
        seen.append([held(folder / "state" / name) for name in pair])
        return make(spec, encoder)

    monkeypatch.setattr(finetuning, "make_model", look)
    train(folder, {name: SPECS[name] for name in pair})
    assert seen == [[True, False], [False, True]], "and wait for it"


def test_a_failure_that_cannot_be_noted_is_told(tmp_path: Path) -> None:
    (tmp_path / FAILED).mkdir()
    with pytest.raises(
        UserError, match=r"the loss is odd \(and .*failed\.txt cannot be written: Is a directory\)"
    ):
        note_failure(tmp_path, "the loss is odd")


def test_a_pack_that_comes_back_after_another_grid_is_trained_again(folder: Path) -> None:
    first, second = {name: SPECS[name] for name in list(SPECS)[:2]}, {"lora": SPECS["lora"]}
    train(folder, first)
    changed = {name: spec | {"method": FULL | {"lr": 1e-4}} for name, spec in second.items()}
    finetune_pack(
        changed, folder / "store", [folder / "seed-0.tsv", folder / "seed-1.tsv"], None, folder / "state",
        folder / "other.tsv", device="cpu",
    )  # fmt: skip
    assert not (folder / "pack.tsv").exists(), "it said that a cell is there which is not any more"
    assert sorted(train(folder, first)) == ["kept", "trained"]
    assert not (folder / "other.tsv").exists()


def test_a_cell_of_other_settings_is_not_taken_over(folder: Path) -> None:
    (name, spec), *_ = SPECS.items()
    train(folder, {name: spec})
    parts = {
        "split": folder / "seed-0.tsv",
        "scans": folder / "store/scans.tsv",
        "encoder": None,
        "choice": None,
    }
    made_from = cell_sources(spec, **parts)
    take_over(folder / "state" / name, made_from, folder / "out")
    record = folder / "out/delta.safetensors.json"
    assert {*(folder / "out").iterdir()} == {record, *(folder / "out" / name for name in CELL_FILES)}
    tiny_cells.make_store(folder / "other", seed=1)
    others = {
        "settings": cell_sources(spec | {"clip": 9}, **parts),
        "split": cell_sources(spec, **parts | {"split": folder / "seed-1.tsv"}),
        "volumes": cell_sources(spec, **parts | {"scans": folder / "other/scans.tsv"}),
        "encoder": cell_sources(spec, **parts | {"encoder": "of another encoder"}),
        "choice": cell_sources(spec, **parts | {"choice": {"lr": 1.0}}),
    }
    for part, other in others.items():
        with pytest.raises(UserError, match=f"trained with other .*{part}"):
            take_over(folder / "state" / name, other, folder / "out")
    with pytest.raises(UserError, match="holds no finished cell"):
        take_over(folder / "state" / "none", made_from, folder / "out")


def test_an_encoder_made_again_just_the_same_trains_nothing_and_another_one_all(folder: Path) -> None:
    encoder = folder / "encoder.safetensors"
    splits, table = [folder / "seed-0.tsv"], folder / "pack.tsv"
    for seed, outcome in ((0, "trained"), (0, "kept"), (1, "trained")):
        torch.manual_seed(seed)
        save_encoder(encoder, vit.build(tiny_cells.BACKBONE), {})
        os.utime(encoder, (0, 0))
        finetune_pack(
            {"lora": SPECS["lora"]}, folder / "store", splits, encoder, folder / "state", table, device="cpu"
        )
        assert [row["outcome"] for row in read_tsv(table)] == [outcome]


@pytest.mark.parametrize("last", ["validation", "file"])
def test_a_signal_while_a_cell_ends_stops_the_pack(
    folder: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    def told_to_stop(name: str, rows: list, steps: int) -> None:
        if rows[-1]["step"] == steps:
            os.kill(os.getpid(), signal.SIGUSR1)

    def write(path: Path, rows: list) -> None:
        write_history(path, rows)
        os.kill(os.getpid(), signal.SIGUSR1)

    if last == "validation":
        monkeypatch.setattr(loop, "report", told_to_stop)
    else:
        monkeypatch.setattr(finetuning, "write_history", write)
    with pytest.raises(SystemExit) as left:
        train(folder, SPECS)
    assert left.value.code == REQUEUE_EXIT_CODE
    assert [is_finished(folder / "state" / name) for name in SPECS] == [1, 0, 0, 0]
    monkeypatch.undo()
    assert train(folder, SPECS) == ["kept", "trained", "trained", "trained"]


def test_changed_code_trains_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"lora": SPECS["lora"]}
    train(folder, one)
    assert train(folder, one) == ["kept"]
    monkeypatch.setattr(numerics, "version", lambda *modules: "of other code")
    assert train(folder, one) == ["trained"]


def test_a_cell_that_fails_leaves_its_neighbours_trained(folder: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 3 cells failed, the others are kept: .*loss is not finite"):
        train(folder, {"lora": SPECS["lora"], "broken": BROKEN, "full half": SPECS["full half"]})
    assert not (folder / "pack.tsv").exists()
    assert [is_finished(folder / "state" / name) for name in ("lora", "broken", "full half")] == [1, 0, 1]
    assert "lower lr" in (why_failed(folder / "state" / "broken") or "")
    corrected = {"lora": SPECS["lora"], "broken": SPECS["shuffled"], "full half": SPECS["full half"]}
    # what failed before comes last
    assert train(folder, corrected) == ["kept", "kept", "trained"]
    assert why_failed(folder / "state" / "broken") is None


def test_an_unexpected_error_leaves_the_neighbours_trained_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = finetuning.make_model

    def break_full(spec: dict, encoder: Path | None) -> object:
        return make(spec, encoder) if spec["method"]["kind"] == "lora" else 1 / 0

    monkeypatch.setattr(finetuning, "make_model", break_full)
    with pytest.raises(UserError, match=r"1 of 2 cells failed.*full/fraction-100/0: ZeroDivisionError"):
        train(folder, {"full half": SPECS["full half"], "lora": SPECS["lora"]})
    assert is_finished(folder / "state" / "lora")


def test_half_an_outcome_is_none(folder: Path) -> None:
    train(folder, {"lora": SPECS["lora"]})
    (folder / "state/lora" / FINISHED / "history.csv").unlink()
    assert train(folder, {"lora": SPECS["lora"]}) == ["trained"]
    shutil.rmtree(folder / "state/lora" / FINISHED)
    assert train(folder, {"lora": SPECS["lora"]}) == ["trained"]


def test_each_cell_is_charged_its_own_memory_and_start(folder: Path) -> None:
    big = tiny_cells.cell(method=FULL, subset="fraction-50", training={"batch_size": 8})
    big["backbone"] = big["backbone"] | {"width": 384, "depth": 12}
    paths = {"store": "store", "splits": "seed-0.tsv", "state": "state", "table": "pack.tsv"}
    options = [word for option, path in paths.items() for word in (f"--{option}", folder / path)]
    # In a process of its own: one that has grown before keeps its memory.
    specs = json.dumps({"big": big, "small": SPECS["full half"]})
    job = tiny_cells.python("neuropeft", "-m", arguments=["finetune", "--specs", specs, *options])
    said = job.communicate()[1]
    assert job.returncode == 0, said
    states = {name: folder / "state" / name / FINISHED for name in ("big", "small")}
    costs = {name: json.loads((state / "cost.json").read_text()) for name, state in states.items()}
    # What the big one has freed may stay with the process, but not all that it used at once.
    assert costs["small"]["peak_memory_bytes"] < costs["big"]["peak_memory_bytes"] - 10e6
    assert costs["small"]["start_seconds"] < costs["small"]["train_seconds"] + 5, "not the age of the process"


# -- who shares a pack -----------------------------------------------------------------------------

CONFIG = Config.model_validate(TINY | {"cells_per_job": 4})
GRID = [
    Cell(task, "vit", pretraining, method, fraction(percent), seed)
    for task in ("ad", "age")
    for pretraining, method in (("none", "scratch"), ("mae", "lora"), ("mae", "full"))
    for percent in (10, 50, 100)
    for seed in (0, 1)
]


def test_a_pack_shares_what_its_job_loads_once() -> None:
    found = packs(CONFIG, GRID)
    assert sorted(cell for members in found.values() for cell in members) == sorted(GRID)
    for pack, members in found.items():
        assert len(members) <= 4
        for cell in members:
            shared = (cell.task, cell.backbone, cell.pretraining, cell.method)
            assert shared == (pack.task, pack.backbone, pack.pretraining, pack.method)
    assert pack_of(found)[GRID[0]].method == GRID[0].method


def test_folds_share_a_pack_unless_each_has_an_encoder_of_its_own() -> None:
    folded = Config.model_validate(TINY | {"cells_per_job": 64, "splits": {"folds": 2, "validation": 0.2}})
    found = packs(folded, [cell._replace(fold=fold) for cell in GRID for fold in (1, 2)])
    for pack, members in found.items():  # `mae` is trained on the cohort of the tasks
        folds = {cell.fold for cell in members}
        assert folds == ({1, 2} if pack.pretraining == "none" else {int(pack.name[len("fold-")])})


def test_another_method_leaves_the_packs_of_others_as_they_are() -> None:
    more = [
        *GRID,
        *(Cell("ad", "vit", "mae", "attention", fraction(percent), 0) for percent in (10, 50, 100)),
    ]
    before, after = packs(CONFIG, GRID), packs(CONFIG, more)
    assert before.items() <= after.items()
    assert {pack.method for pack in after.keys() - before.keys()} == {"attention"}


def test_another_seed_leaves_cells_in_their_packs_or_splits_these() -> None:
    before = packs(CONFIG, GRID)
    after = packs(CONFIG, [*GRID, *{cell._replace(seed=2) for cell in GRID}])
    now_in = pack_of(after)
    for pack, members in before.items():
        assert all(now_in[cell].name.startswith(pack.name) for cell in members)
    assert any(after.get(pack) == members for pack, members in before.items()), "and is trained no more"


def test_a_pack_waits_for_the_splits_of_its_own_seeds_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path, TINY | {"cells_per_job": 1})
    jobs = [job for job in planned.jobs(tmp_path, "--configfile", config) if job.rule.name == "finetune"]
    assert len(jobs) == 10
    for job in jobs:
        (cell,) = json.loads(job.params.specs)
        assert [Path(split).stem for split in job.input.splits] == [Path(cell).name]
