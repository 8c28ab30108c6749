"""Where a run is, over a fabricated results folder: every kind of cell, counted exactly."""

import fcntl
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from neuropeft import layout
from neuropeft.cells.status import Cells, CellStatus, state_folder
from neuropeft.cli import main
from neuropeft.config import Config, Splits
from neuropeft.config.read import read_config, read_yaml
from neuropeft.files import write_tsv
from neuropeft.grid import Cell, cell_spec, cells
from neuropeft.packs import Pack, pack_of, packs
from neuropeft.records import write_record
from neuropeft.status.estimate import estimate
from neuropeft.status.screen import WIDTH, print_status
from neuropeft.subsets import fraction
from neuropeft.train.sources import settings_and_code
from neuropeft.train.state import FINISHED, note_failure

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/tiny.yaml"


@pytest.fixture
def config() -> Config:
    config = read_config(TINY, None)
    halves = config.grid[1].model_copy(update={"fractions": [50, 100], "shots": []})
    return config.model_copy(update={"cells_per_job": 2, "grid": [config.grid[0], halves]})


def finish(
    config: Config, results: Path, folder: Path, cell: Cell, spec: dict | None = None, **cost: object
) -> None:
    """Write what training a cell leaves now, its delta no more than its name."""
    told = {"train_seconds": 3600.0, "train_scans": cell.subset.size, "device": "NVIDIA H200"} | cost
    texts = {"delta.safetensors": cell.path, "history.csv": "step\n", "cost.json": json.dumps(told)}
    files = [write(folder / name, text) for name, text in texts.items()]
    made_from = Cells(config, results).expected(cell)
    write_record(files, made_from | (settings_and_code(spec) if spec else {}))


def finish_state(config: Config, results: Path, cell: Cell, **cost: object) -> None:
    finish(config, results, state_folder(results, cell) / FINISHED, cell, **cost)


def statuses(config: Config, results: Path) -> dict[Cell, CellStatus]:
    return Cells(config, results).statuses


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def printed(config: Config, results: Path, capsys: pytest.CaptureFixture[str]) -> str:
    print_status(config, results)
    return capsys.readouterr().out


def log_of(results: Path, pack: Pack) -> Path:
    return layout.FINETUNE_LOG.at(results, **pack.names)


def counted(text: str) -> dict[str, list[int]]:
    """Return the numbers of each line of the table of cells: done, running, failed, missing, total."""
    found, task = {}, ""
    for line in text.splitlines():
        if match := re.match(r"(\w*)( +[a-z]\w*)?((?: +\d+){5})  [#>x.]+$", line):
            task = match[1] or task
            found[" ".join([task, *(match[2] or "").split()])] = list(map(int, match[3].split()))
    return found


def test_every_cell_is_counted_once(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ad_lora = [cell for cell in cells(config) if (cell.task, cell.method) == ("ad", "lora")]
    assert len(ad_lora) == 4
    done, failed, running, begun = ad_lora
    finish_state(config, tmp_path, done)
    note_failure(state_folder(tmp_path, failed), "ad/vit_xxs/mae/lora/fraction-50/1: the loss\nis not finite")
    write(state_folder(tmp_path, begun) / "checkpoint.pt")

    scratch = [cell for cell in cells(config) if (cell.task, cell.method) == ("ad", "scratch")]
    finish_state(config, tmp_path, scratch[0])
    note_failure(state_folder(tmp_path, scratch[0]), "failed when it was to be trained anew")
    taken_over, outdated = (cell for cell in cells(config) if (cell.task, cell.method) == ("age", "lora"))
    finish(config, tmp_path, tmp_path / "cells" / taken_over.path, taken_over)
    other = cell_spec(config, outdated) | {"subset": "fraction-33"}
    finish(config, tmp_path, state_folder(tmp_path, outdated) / FINISHED, outdated, other)

    # this process trains one cell: another file description holds its lock, and it failed before
    note_failure(state_folder(tmp_path, running), "an earlier failure")
    with write(state_folder(tmp_path, running) / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = printed(config, tmp_path, capsys)
        states = Counter(one.state for one in statuses(config, tmp_path).values())
    assert states == {"done": 2, "running": 1, "failed": 2, "missing": 5}
    assert states.total() == len(cells(config))
    assert counted(text) == {
        "ad lora": [1, 1, 1, 1, 4],
        "ad scratch": [0, 0, 1, 1, 2],
        "age lora": [1, 0, 0, 1, 2],
        "age scratch": [0, 0, 0, 2, 2],
        "all": [2, 1, 2, 5, 10],
    }
    assert "50 %, seed 1: the loss is not finite" in text
    assert str(log_of(tmp_path, pack_of(packs(config, cells(config)))[failed])) in text
    assert "an earlier failure" not in text
    assert "Stopped" not in text
    left = (
        "About 12 GPU-hours (NVIDIA H200) left for 8 cells, running ones counted whole; judged by 2 finished"
    )
    assert left in " ".join(text.split()), "of ad an hour for half of the scans"


@pytest.mark.parametrize(
    ("devices", "named"),
    [(("cpu", "cpu"), "CPU-hours (cpu)"), (("cpu", "NVIDIA H200"), "device-hours (NVIDIA H200, cpu)")],
)
def test_hours_are_those_of_the_devices_that_trained(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], devices: tuple[str, ...], named: str
) -> None:
    for cell, device in zip(cells(config), devices, strict=False):
        finish_state(config, tmp_path, cell, device=device)
    assert named in printed(config, tmp_path, capsys)


def test_a_single_method_is_named(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = json.loads(config.model_dump_json())
    raw["grid"] = [raw["grid"][1]]
    text = printed(Config.model_validate(raw), tmp_path, capsys)
    assert counted(text) == {"ad lora": [0, 0, 0, 4, 4], "all": [0, 0, 0, 4, 4]}


def test_the_verb_looks_where_it_is_told_to(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_state(config, tmp_path, cells(config)[-1])
    assert main(["status", "--configfile", str(TINY), "--results", str(tmp_path)]) == 0
    assert counted(capsys.readouterr().out)["all"] == [1, 0, 0, 9, 10]


def test_nothing_has_run_yet(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(config, tmp_path / "results", capsys)
    assert counted(text)["all"] == [0, 0, 0, 10, 10]
    assert re.search(r"^SimA +not begun$", text, flags=re.MULTILINE)
    assert re.search(r"^mae +vit_xxs +waiting$", text, flags=re.MULTILINE)
    assert "unknown, since none is done yet" in text
    assert f"There is no folder {tmp_path / 'results'}" in text
    assert not (tmp_path / "results").exists(), "it only reads"


def test_how_much_of_a_search_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = read_yaml(TINY)
    raw["training"]["search"] = {"trials": 3, "trials_per_job": 2, "ranges": {"lr": [0.3, 1]}}
    (tmp_path / "search/ad/vit_xxs/mae/lora").mkdir(parents=True)
    (tmp_path / "search/ad/vit_xxs/mae/lora/trials-2.tsv").touch()
    text = printed(Config.model_validate(raw), tmp_path, capsys)
    assert "Search  1 of 8 jobs of trials done" in text


def make_data(config: Config, results: Path) -> list[dict]:
    """Write the store, the labels and a split of task ad, and an encoder; return the store's rows."""
    rows = [
        {"scan_id": f"s{i}", "subject": f"s{i}", "session": None, "y": i % 2, "sex": None, "sha1": f"of {i}"}
        for i in range(40)
    ]
    for path in ("tasks/ad/SimA.tsv", "cohorts/SimA/store/scans.tsv"):
        write_tsv(results / path, rows, list(rows[0]))
    split(config, results)
    write(results / "pretraining/mae/vit_xxs/encoder.safetensors", "an encoder")
    return rows


def split(config: Config, results: Path, *options: str, name: str = "seed-0") -> None:
    tables = {"labels": "tasks/ad/SimA.tsv", "store-scans": "cohorts/SimA/store/scans.tsv"}
    said = [f"--{option}={results / path}" for option, path in tables.items()]
    shares = [f"--test={config.splits.test_share}", f"--validation={config.splits.validation}"]
    out = f"--out={results / 'splits/ad' / name}.tsv"
    kind = ["--task=ad", "--kind=binary", "--size=2", "--seed=0"]
    assert main(["split", *kind, *said, *(options or shares), out]) == 0


def another_encoder(results: Path, rows: list[dict]) -> None:
    write(results / "pretraining/mae/vit_xxs/encoder.safetensors", "An encoder")


def other_volumes(results: Path, rows: list[dict]) -> None:
    changed = [row | {"sha1": "another"} for row in rows]
    write_tsv(results / "cohorts/SimA/store/scans.tsv", changed, list(rows[0]))


@pytest.mark.parametrize(("part", "change"), [("encoder", another_encoder), ("volumes", other_volumes)])
def test_a_cell_made_from_something_else_is_not_done_whatever_the_times(
    config: Config, tmp_path: Path, part: str, change: Callable[[Path, list[dict]], None]
) -> None:
    def same_times() -> None:
        for path in tmp_path.rglob("*"):
            os.utime(path, (60, 60))

    cell = Cell("ad", "vit_xxs", "mae", "lora", fraction(50), 0)
    rows = make_data(config, tmp_path)
    finish_state(config, tmp_path, cell)
    same_times()
    os.utime(tmp_path / "pretraining/mae/vit_xxs/encoder.safetensors")
    assert statuses(config, tmp_path)[cell].state == "done"
    change(tmp_path, rows)
    same_times()
    os.utime(
        tmp_path / "cohorts/SimA/store/scans.tsv", (61, 61)
    )  # read once by a process until it is touched
    found = statuses(config, tmp_path)[cell]
    assert (found.state, found.reason.split()[-1]) == ("missing", part)


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: "X" + old[1:], lambda old: ""])
def test_damaged_files_are_named_and_never_a_traceback(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[str], str]
) -> None:
    damaged = ("delta.safetensors", "cost.json", "delta.safetensors.json")
    for cell, name in zip(cells(config), damaged, strict=False):
        finish_state(config, tmp_path, cell)
        path = state_folder(tmp_path, cell) / FINISHED / name
        path.write_text(damage(path.read_text()))
    assert {one.state for one in statuses(config, tmp_path).values()} == {"missing"}
    text = printed(config, tmp_path, capsys)
    path = state_folder(tmp_path, cells(config)[0]) / FINISHED / "delta.safetensors"
    assert f"{path} is damaged" in " ".join(text.split())
    assert "Trained before: 3 cells, which the next run trains again" in text


def test_cells_of_a_fold_wait_for_its_own_encoder_and_split(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folded = config.model_copy(update={"splits": Splits(folds=2)})
    first, second = (Cell("ad", "vit_xxs", "mae", "lora", fraction(50), 0, fold) for fold in (1, 2))
    for cell in (first, second):
        finish_state(folded, tmp_path, cell)
    write_record([write(tmp_path / "pretraining/mae/vit_xxs/fold-2/encoder.safetensors")], {})
    found = statuses(folded, tmp_path)
    assert len(found) == 20
    assert (found[first].state, found[second].state) == ("done", "missing")
    note_failure(state_folder(tmp_path, second), "too few subjects")
    text = printed(folded, tmp_path, capsys)
    assert "50 %, seed 0, fold 2: too few subjects" in text
    assert re.search(r"^mae +vit_xxs, fold 1 +waiting$", text, flags=re.MULTILINE)
    assert re.search(r"^mae +vit_xxs, fold 2 +done", text, flags=re.MULTILINE)
    of_pack = packs(folded, found)
    assert {pack.name for pack in of_pack if pack.pretraining == "mae"} == {
        f"fold-{fold}_{name}" for fold in (1, 2) for name in ("x", "x0", "x1")
    }
    assert not any("fold" in pack.name for pack in of_pack if pack.pretraining == "none")


def test_a_cell_whose_split_would_be_another_one_by_now_is_not_done(config: Config, tmp_path: Path) -> None:
    cell = Cell("ad", "vit_xxs", "mae", "lora", fraction(50), 0)
    rows = make_data(config, tmp_path)
    finish_state(config, tmp_path, cell)
    assert statuses(config, tmp_path)[cell].state == "done"
    other = config.model_copy(update={"splits": config.splits.model_copy(update={"test": 0.4})})
    assert statuses(other, tmp_path)[cell].state == "missing"
    folded = config.model_copy(update={"splits": Splits(folds=2, validation=0.2)})
    of_fold = cell._replace(fold=2)
    split(folded, tmp_path, "--fold=2", "--folds=2", "--validation=0.2", name="seed-0_fold-2")
    finish_state(folded, tmp_path, of_fold)
    assert statuses(folded, tmp_path)[of_fold].state == "done"
    three = config.model_copy(update={"splits": Splits(folds=3, validation=0.2)})
    assert statuses(three, tmp_path)[of_fold].state == "missing"
    corrected = [row | {"y": 1} if row["scan_id"] == "s0" else row for row in rows]
    write_tsv(tmp_path / "tasks/ad/SimA.tsv", corrected, ("scan_id", "subject", "session", "y", "sex"))
    assert statuses(config, tmp_path)[cell].state == "missing"


def test_a_job_that_ended_without_a_word(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_pack = pack_of(packs(config, cells(config)))
    stopped, trained, failed, waiting, *_ = sorted(set(of_pack.values()))
    write(log_of(tmp_path, stopped), "step 1\nslurmstepd: error: Detected 1 oom_kill event\n\n")
    write(log_of(tmp_path, trained), "cell 2/2\n")
    write(layout.PACK.at(tmp_path, **trained.names))  # its cells are missing since their settings changed
    write(log_of(tmp_path, failed), "it says why\n")
    cell = next(cell for cell, pack in of_pack.items() if pack == failed)
    note_failure(state_folder(tmp_path, cell), "too few subjects")
    text = printed(config, tmp_path, capsys)
    assert f"{log_of(tmp_path, stopped)}\n    slurmstepd: error: Detected 1 oom_kill event" in text
    assert not any(str(log_of(tmp_path, pack)) in text for pack in (trained, waiting))
    assert str(log_of(tmp_path, failed)) not in text.split("Stopped")[1]
    cell = next(cell for cell, pack in of_pack.items() if pack == stopped)
    with write(state_folder(tmp_path, cell) / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Stopped" not in printed(config, tmp_path, capsys)


def test_preprocessing_and_pretraining(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = [{"scan_id": f"s{i}", "chunk": f"x{i % 2}"} for i in range(7)]
    write_tsv(tmp_path / "cohorts/SimA/scans.tsv", index, ("scan_id", "chunk"))
    done = [{"scan_id": row["scan_id"], "status": "ok"} for row in index[::2]]
    done[0]["status"] = "failed"
    write_tsv(tmp_path / "cohorts/SimA/chunks/x0/resample.tsv", done, ("scan_id", "status"))
    log = tmp_path / "logs/pretrain/mae/vit_xxs.log"
    said = "pretraining: step 1/4, lr 0.1, train_loss 0.5, 900.0 s, at most 900 s left\n"
    write(log, said + "Terminated\n")
    text = printed(config, tmp_path, capsys)
    assert re.search(r"^SimA +1 of 2 +7 +1 +no$", text, flags=re.MULTILINE)
    assert re.search(r"^mae +vit_xxs +stopped +step 1 of 4, at most 0.2 h left$", text, flags=re.MULTILINE)
    assert f"{log}\n    Terminated" in text
    write(log, "pretraining: going on from step 3 of the checkpoint\n")
    with write(tmp_path / "_state/pretraining/mae/vit_xxs/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = printed(config, tmp_path, capsys)
        assert re.search(r"^mae +vit_xxs +running +step 3 of 4$", text, flags=re.MULTILINE)
    encoder = write(tmp_path / "pretraining/mae/vit_xxs/encoder.safetensors", "weights")
    write_record([encoder], {})
    assert re.search(r"^mae +vit_xxs +done +step 4 of 4$", printed(config, tmp_path, capsys), re.MULTILINE)
    encoder.write_text("weightS")
    assert re.search(r"^mae +vit_xxs +damaged", printed(config, tmp_path, capsys), re.MULTILINE)


def test_time_left_follows_from_the_nearest_finished_cells(config: Config, tmp_path: Path) -> None:
    def seconds(*wanted: Cell) -> float | None:
        found = statuses(config, tmp_path)
        kept = {cell: one for cell, one in found.items() if one.state == "done" or cell in wanted}
        return estimate(kept).seconds

    def cell(task: str, method: str, percent: int, seed: int) -> Cell:
        pretraining = "none" if method == "scratch" else "mae"
        return Cell(task, "vit_xxs", pretraining, method, fraction(percent), seed)

    half, whole = cell("ad", "lora", 50, 0), cell("ad", "lora", 100, 1)
    assert seconds(whole) is None
    finish_state(config, tmp_path, half, train_seconds=60.0, train_scans=20)
    assert seconds(cell("ad", "lora", 50, 1)) == 60
    assert seconds(whole) == 120
    assert seconds(whole, cell("ad", "lora", 100, 0)) == 2 * 120
    # of another task nothing is known, so it is taken to be as large; then that it has three times the scans
    assert seconds(cell("age", "lora", 100, 0)) == 120
    finish_state(config, tmp_path, cell("age", "scratch", 100, 0), train_seconds=1.0, train_scans=120)
    assert seconds(cell("age", "lora", 100, 0)) == 360
    assert estimate(statuses(config, tmp_path)).far == 4  # age by lora and ad by scratch
    finish_state(config, tmp_path, cell("ad", "lora", 100, 0), train_seconds=100.0, train_scans=40)
    assert seconds(whole) == 100


def test_the_screen_is_100_columns_wide(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = cells(config)
    finish_state(config, tmp_path, first)
    note_failure(state_folder(tmp_path, second), "a long story " * 30)
    lines = printed(config, tmp_path, capsys).splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= WIDTH


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from neuropeft.cli import main; "
        f"main(['status', '--configfile', {str(TINY)!r}, '--results', {str(tmp_path)!r}]); "
        "print({'torch', 'numpy', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
