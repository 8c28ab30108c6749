"""The search: the same number of trials for every method, the best of them chosen by validation."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_cells
from neuropeft.config.search import Range, Search, at_edge
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.grid import Cell, searched
from neuropeft.subsets import fraction
from neuropeft.train import search as module
from neuropeft.train.choices import choose, read_choices, with_choice
from neuropeft.train.pack import finetune_pack
from neuropeft.train.predict import predict
from neuropeft.train.search import run_trials, shortened

LORA = {"kind": "lora", "r": 2, "alpha": 2.0, "targets": ["q", "v"], "dropout": 0.0}
LORA |= {"lr": 2e-3, "head_lr": None, "weight_decay": 0.0}
GRID: dict[str, Any] = {"sampler": "grid", "share": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tiny_cells.make_store(tmp_path / "store")
    tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    return store


def spec(method: dict = LORA, **training) -> dict:
    settings = {"epochs": 4, "warmup_epochs": 1, "augment": {}} | training
    return tiny_cells.cell(method=method, training=settings)


def run(cell: dict, store: Path, search: Search, first: int = 0, earlier: tuple[Path, ...] = ()) -> Path:
    """Train the trials of one job on one cell; return their table."""
    table = store.parent / f"trials-{first}.tsv"
    splits = [store.parent / "seed-0.tsv"]
    state = store.parent / "state"
    run_trials({"a/cell": cell}, store, splits, None, state, table, search, first, earlier, "cpu")
    return table


def chosen(store: Path, search: Search, *tables: Path) -> dict[str, str]:
    choose(tables, search, store.parent / "chosen.tsv")
    (row,) = read_tsv(store.parent / "chosen.tsv")
    return row


def drawn(tables: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(row["drawn"]) for table in tables for row in read_tsv(table)]


def test_every_method_has_as_many_trials_of_the_settings_that_it_has() -> None:
    search = Search(trials=5, trials_per_job=2, ranges={"r": [2, 4], "lr": [0.3, 1], "batch_size": [4, 8]})
    assert list(search.of(LORA)) == ["lr", "batch_size", "r"]
    assert list(search.of({"kind": "full"})) == ["lr", "batch_size"]
    for method in (LORA, {"kind": "full"}):
        assert search.count(method) == 5
        assert list(search.firsts(method)) == [0, 2, 4]
    grid = search.model_copy(update={"sampler": "grid"})
    assert (grid.count(LORA), grid.count({"kind": "full"})) == (8, 4)
    assert grid.grid(LORA)[1] == {"lr": 0.3, "batch_size": 4, "r": 4}


def test_a_grid_tries_all_combinations_and_the_lowest_loss_is_chosen(store: Path) -> None:
    search = Search(**GRID, ranges={"lr": [0.1, 1, 10], "r": [2, 4]})
    table = run(spec(), store, search.model_copy(update={"trials_per_job": 6}))
    rows = read_tsv(table)
    assert [(float(row["lr"]), int(row["r"])) for row in rows] == [
        (pytest.approx(lr), r) for lr in (2e-4, 2e-3, 2e-2) for r in (2, 4)
    ]
    assert {(row["outcome"], row["steps"]) for row in rows} == {("finished", "8")}, "half of the steps"
    best = min(rows, key=lambda row: float(row["val_loss"]))
    row = chosen(store, search, table)
    assert (row["fold"], row["trial"]) == ("0", best["trial"])
    assert read_choices(store.parent / "chosen.tsv") == {0: {"lr": float(best["lr"]), "r": int(best["r"])}}
    assert row["at_edge"] == ("r" if float(best["lr"]) == 2e-3 else "lr, r")


def test_of_a_setting_that_is_a_list_each_entry_is_searched(store: Path) -> None:
    fairtune = {"kind": "fairtune", "mask": ["attn", "attn"]} | {
        "lr": 2e-3,
        "head_lr": None,
        "weight_decay": 0.0,
    }
    search = Search(share=0.25, trials=4, ranges={"mask": ["attn", "mlp", ""]})
    table = run(spec(fairtune), store, search)
    tried = [json.loads(row["mask"]) for row in read_tsv(table)]
    assert tried[0] == fairtune["mask"], "the first is the method as given"
    assert any(first != second for first, second in tried)
    row = chosen(store, search, table)
    assert read_choices(store.parent / "chosen.tsv") == {0: {"mask": tried[int(row["trial"])]}}
    assert row["at_edge"] == "n/a", "parts have no order"
    assert with_choice(spec(fairtune), {"mask": ["", "mlp"]})["method"]["mask"] == ["", "mlp"]
    assert search.model_copy(update={"sampler": "grid"}).count(fairtune) == 9


def test_a_trial_is_the_cell_with_other_settings_and_fewer_steps(store: Path) -> None:
    choice = {"lr": 1e-2, "r": 4, "batch_size": 2}
    cell = spec(min_steps=40)
    changed = with_choice(cell, choice)
    assert changed["method"] == LORA | {"lr": 1e-2, "r": 4}
    assert changed["training"] == cell["training"] | {"batch_size": 2}
    assert with_choice(cell, None) == cell
    for warmup, share, expected in ((4, 0.5, (2, 4, 20)), (4, 0.1, (1, 2, 4)), (0, 0.1, (0, 1, 4))):
        shorter = shortened(spec(epochs=8, warmup_epochs=warmup, min_steps=40), share)["training"]
        assert (shorter["warmup_epochs"], shorter["epochs"], shorter["min_steps"]) == expected


def test_what_is_drawn_depends_on_the_number_of_a_trial_and_on_no_job(store: Path) -> None:
    wide = {"lr": Range(low=0.1, high=10, log=True), "head_lr": Range(low=0.5, high=2), "batch_size": [4, 8]}
    search = Search(trials=3, trials_per_job=1, share=0.25, ranges=wide)
    apart = [run(spec(), store, search, first) for first in range(3)]
    texts = drawn(apart)
    assert texts[0] == {"lr": 1.0, "head_lr": 1.0, "batch_size": 8}, "the first is the method as given"
    assert len({json.dumps(one) for one in texts}) == 3
    for one in texts:
        assert 0.1 <= one["lr"] <= 10
        assert 0.5 <= one["head_lr"] <= 2
    together = run(spec(), store, search.model_copy(update={"trials_per_job": 3}))
    assert drawn([together]) == texts
    other = {"kind": "full", "lr": 1e-3, "head_lr": None, "weight_decay": 0.0}
    assert drawn([run(spec(other), store, search, 2)]) == [texts[2]], "the same for every method"


def test_tpe_learns_from_the_trials_before(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Noted(module.TPESampler):
        def sample_independent(self, study, *rest):
            told.append(len([trial for trial in study.trials if trial.state.is_finished()]))
            return super().sample_independent(study, *rest)

    monkeypatch.setattr(module, "TPESampler", Noted)
    search = Search(trials=4, trials_per_job=2, sampler="tpe", share=0.25,
                    ranges={"lr": Range(low=0.1, high=10, log=True)})  # fmt: skip
    first = run(spec(), store, search)
    run(spec(), store, search, 2, (first,))
    assert told == [1, 2, 3], "the first is given"


def test_a_trial_worse_than_the_median_is_ended_and_never_chosen(store: Path) -> None:
    search = Search(**GRID, pruner="median", trials_per_job=4, ranges={"lr": [1, 0.9, 1.1, 1e-9]})
    table = run(spec(epochs=8), store, search)
    rows = read_tsv(table)
    assert [row["outcome"] for row in rows] == ["finished"] * 3 + ["pruned"]
    assert len(json.loads(rows[3]["losses"])) < len(json.loads(rows[0]["losses"])) == 4
    assert chosen(store, search, table)["trial"] != "3"
    assert not list((store.parent / "state/a/cell/trial-3").glob("*.pt")), "its checkpoint is gone"


def test_without_a_finite_loss_nothing_is_chosen(store: Path) -> None:
    scratch = {"kind": "scratch", "lr": 1e-3, "head_lr": None, "weight_decay": 0.0}
    search = Search(**GRID, ranges={"lr": [1, 1e33]})
    table = run(spec(scratch), store, search)
    assert [row["outcome"] for row in read_tsv(table)] == ["finished", "not finite"]
    assert chosen(store, search, table)["trial"] == "0"
    bad = search.model_copy(update={"ranges": {"lr": [1e33]}})
    with pytest.raises(UserError, match="no trial has a finite loss; give the method a lower lr"):
        chosen(store, bad, run(spec(scratch), store, bad))


def test_the_edge_of_what_was_tried() -> None:
    assert [at_edge([1, 2, 3], value) for value in (1, 2, 3)] == [True, False, True]
    assert not at_edge([1], 1), "nothing else was tried"
    log = Range(low=0.1, high=10, log=True)
    assert [at_edge(log, value) for value in (0.11, 1.0, 9.0)] == [True, False, True]
    assert [at_edge(Range(low=0, high=10), value) for value in (0.9, 1.1, 9.1)] == [True, False, True]


@pytest.mark.slow
def test_every_fold_has_a_choice_of_its_own_which_trains_and_predicts_its_cells(store: Path) -> None:
    folder = store.parent
    splits = [tiny_cells.make_split(folder / f"seed-0_fold-{n}.tsv", store, test=1 + n) for n in (1, 2)]
    cells = {f"fold-{n}": spec() | {"fold": n} for n in (1, 2)}
    search = Search(**GRID, ranges={"r": [2, 4]})
    table = folder / "trials-0.tsv"
    run_trials(cells, store, splits, None, folder / "state", table, search, 0, (), "cpu")
    assert [(row["fold"], row["r"]) for row in read_tsv(table)] == [
        ("1", "2"), ("1", "4"), ("2", "2"), ("2", "4")
    ]  # fmt: skip
    choose([table], search, folder / "chosen.tsv")
    rows = read_tsv(folder / "chosen.tsv")
    write_tsv(folder / "chosen.tsv", [row | {"r": r} for row, r in zip(rows, (2, 4), strict=True)], rows[0])

    def train() -> list[str]:
        pack = folder / "pack.tsv"
        finetune_pack(cells, store, splits, None, folder / "cells", pack, folder / "chosen.tsv", "cpu")
        return [row["outcome"] for row in read_tsv(pack)]

    assert train() == ["trained"] * 2
    finished = [folder / f"cells/fold-{fold}/finished" for fold in (1, 2)]
    costs = [tiny_cells.read_cost(path) for path in finished]
    assert [cost["chosen_r"] for cost in costs] == [2, 4]
    assert costs[1]["trainable"] == 2 * costs[0]["trainable"]
    predict([path / "delta.safetensors" for path in finished], [], store, splits, folder / "p.tsv", "cpu")
    assert {row["fold"] for row in read_tsv(folder / "p.tsv")} == {"1", "2"}
    assert train() == ["kept"] * 2
    write_tsv(folder / "chosen.tsv", [row | {"r": 2} for row in rows], rows[0])
    assert train() == ["kept", "trained"], "another choice, another cell"


def test_a_search_that_is_stopped_keeps_what_it_has_trained(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = module.finetune, []

    def stopped(*given, **named):
        if len(trained) == 1:
            raise SystemExit(99)
        trained.append(train(*given, **named))

    search = Search(**GRID, ranges={"r": [2, 4]})
    monkeypatch.setattr(module, "finetune", stopped)
    with pytest.raises(SystemExit):
        run(spec(), store, search)
    assert not (store.parent / "trials-0.tsv").exists()
    trained.clear()
    monkeypatch.setattr(module, "finetune", lambda *given, **named: trained.append(train(*given, **named)))
    rows = read_tsv(run(spec(), store, search))
    assert trained == [False, True]
    assert all(len(json.loads(row["losses"])) == 2 for row in rows), "those of a trial that was kept, too"


def test_tables_that_are_none_are_refused(store: Path) -> None:
    write_tsv(store.parent / "chosen.tsv", [{"fold": 1, "r": 2}, {"fold": 1, "r": 4}], ("fold", "r"))
    with pytest.raises(UserError, match=r"chosen\.tsv does not hold one row of each fold; start"):
        read_choices(store.parent / "chosen.tsv")
    write_tsv(store.parent / "trials-0.tsv", [{"fold": "x"}], ("fold",))
    with pytest.raises(UserError, match=r"trials-0\.tsv is no table of trials; start"):
        choose([store.parent / "trials-0.tsv"], Search(), store.parent / "chosen.tsv")


def test_of_each_fold_the_cell_of_most_data_and_the_first_seed_is_searched() -> None:
    some = [
        Cell("ad", "vit", "mae", "lora", fraction(percent), seed, fold)
        for percent in (10, 100, 50)
        for seed in (3, 1, 2)
        for fold in (2, 1)
    ]
    assert searched(some) == [Cell("ad", "vit", "mae", "lora", fraction(100), 1, fold) for fold in (1, 2)]
