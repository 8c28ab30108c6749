"""The search: the same candidates for every method, the best of them chosen by validation."""

from pathlib import Path

import pytest

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.grid import Cell, searched
from neuropeft.subsets import fraction
from neuropeft.train.pack import finetune_pack
from neuropeft.train.search import COLUMNS, candidates, search
from neuropeft.train.sources import chosen_rates

FULL = {"kind": "full", "lr": 2e-3, "head_lr": None}
WANTED = {"lr": [0.1, 1.0, 10.0], "head_lr": [1.0], "share": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tiny_cells.make_store(tmp_path / "store")
    tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    return store


def run(cell: dict, store: Path) -> list[dict[str, str]]:
    """Search for the rates of one cell; return the table."""
    table = store.parent / "search.tsv"
    search({"a/cell": cell}, store, [store.parent / "seed-0.tsv"], None, store.parent / "state", table, "cpu")
    return read_tsv(table)


def spec(method: dict = FULL, **training) -> dict:
    settings = {"epochs": 8, "warmup_epochs": 1, "search": WANTED, "augment": {}} | training
    return tiny_cells.cell(method=method, training=settings)


def test_candidates_are_all_pairs_of_rates_at_a_share_of_the_steps() -> None:
    wanted = {"lr": [0.3, 1.0], "head_lr": [1.0, 5.0], "share": 0.25}
    method = FULL | {"head_lr": 1e-2, "layer_decay": 0.75}
    cell = spec(method, search=wanted, min_steps=400)
    found = candidates(cell)
    rates = [(one["method"]["lr"], one["method"]["head_lr"]) for one in found]
    assert rates == [pytest.approx(pair) for pair in ((6e-4, 1e-2), (6e-4, 5e-2), (2e-3, 1e-2), (2e-3, 5e-2))]
    for one in found:
        assert (one["training"]["epochs"], one["training"]["min_steps"]) == (2, 100)
        assert one["training"]["search"] is None
        same = {"epochs", "warmup_epochs", "min_steps", "search"}
        assert {k: v for k, v in one["training"].items() if k not in same} == {
            k: v for k, v in cell["training"].items() if k not in same
        }
        assert one["method"].items() >= {"kind": "full", "layer_decay": 0.75}.items()
    assert {one["method"]["head_lr"] for one in candidates(spec())} == {2e-3}, (
        "a method without one of its own"
    )


def test_a_candidate_has_its_share_of_the_warm_up_and_trains_beyond_it() -> None:
    for warmup, share, expected in ((4, 0.5, (2, 4)), (4, 0.1, (1, 2)), (0, 0.1, (0, 1))):
        cell = spec(warmup_epochs=warmup, search=WANTED | {"share": share})
        shorter = candidates(cell)[0]["training"]
        assert (shorter["warmup_epochs"], shorter["epochs"]) == expected


def test_the_lowest_validation_loss_chooses_and_the_edge_is_marked(store: Path) -> None:
    rows = run(spec(), store)
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["lr"]) for row in rows] == pytest.approx([2e-4, 2e-3, 2e-2])
    assert {row["steps"] for row in rows} == {"16"}
    best = min(rows, key=lambda row: float(row["val_loss"]))
    for row in rows:
        edge = row is best and float(row["lr"]) != 2e-3
        assert (row["chosen"], row["at_edge"]) == (str(int(row is best)), str(int(edge)))
    rates = {"lr": float(best["lr"]), "head_lr": float(best["head_lr"])}
    assert chosen_rates(store.parent / "search.tsv") == {0: rates}


def test_rates_without_a_finite_loss_are_not_chosen(store: Path) -> None:
    cell = spec({"kind": "scratch", "lr": 1e-3}, search=WANTED | {"lr": [1.0, 1e33]}, epochs=2)
    rows = [(row["steps"], row["val_loss"], row["chosen"], row["at_edge"]) for row in run(cell, store)]
    assert rows[0] == ("8", rows[0][1], "1", "1")
    assert rows[1] == ("n/a", "inf", "0", "0")
    cell["training"]["search"] = WANTED | {"lr": [1e33]}
    with pytest.raises(UserError, match="no loss of the search is finite; give a lower lr"):
        run(cell, store)


def test_one_rate_that_was_tried_is_no_edge(store: Path) -> None:
    rows = run(spec(search=WANTED | {"lr": [1.0]}, epochs=2), store)
    assert [(row["chosen"], row["at_edge"]) for row in rows] == [("1", "0")]


def test_every_fold_has_rates_of_its_own(store: Path) -> None:
    folder = store.parent
    splits = [tiny_cells.make_split(folder / f"seed-0_fold-{n}.tsv", store, test=1 + n) for n in (1, 2)]
    cells = {f"fold-{n}": spec(epochs=2, search=WANTED | {"lr": [0.3, 1.0]}) | {"fold": n} for n in (1, 2)}
    search(cells, store, splits, None, folder / "state", folder / "search.tsv", "cpu")
    rows = read_tsv(folder / "search.tsv")
    assert [row["fold"] for row in rows] == ["1", "1", "2", "2"]
    for fold, (first, second) in {1: rows[:2], 2: rows[2:]}.items():
        best = first if float(first["val_loss"]) <= float(second["val_loss"]) else second
        assert chosen_rates(folder / "search.tsv")[fold]["lr"] == float(best["lr"])
    finetune_pack(
        cells, store, splits, None, folder / "cells", folder / "pack.tsv", folder / "search.tsv", "cpu"
    )
    for fold in (1, 2):
        cost = tiny_cells.read_cost(folder / f"cells/fold-{fold}/finished")
        assert cost["chosen_lr"] == chosen_rates(folder / "search.tsv")[fold]["lr"]


def test_a_search_that_is_stopped_keeps_the_candidates_that_it_has_tried(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuropeft.train import search as module

    train, trained = module.finetune, []

    def counted(candidate, *rest):
        if len(trained) == 1:
            raise SystemExit(99)
        trained.append(train(candidate, *rest))

    cell = spec(epochs=2)
    monkeypatch.setattr(module, "finetune", counted)
    with pytest.raises(SystemExit):
        run(cell, store)
    assert not (store.parent / "search.tsv").exists()
    trained.clear()
    monkeypatch.setattr(module, "finetune", lambda *given: trained.append(train(*given)))
    run(cell, store)
    assert trained == [False, True, True]


def test_the_chosen_rates_train_the_cells_of_a_pack(store: Path) -> None:
    folder, cell = store.parent, spec(epochs=2)
    table = folder / "search.tsv"
    row = {"fold": 0, "lr": 5e-4, "head_lr": 7e-3, "steps": 4, "val_loss": 0.1, "seconds": 1}
    row |= {"chosen": 1, "at_edge": 0}
    write_tsv(table, [row | {"lr": 1e-4, "chosen": 0}, row], COLUMNS)
    paths = (folder / "store", [folder / "seed-0.tsv"], None, folder / "state", folder / "pack.tsv")
    finetune_pack({"cell": cell}, *paths, table, "cpu")
    cost = tiny_cells.read_cost(folder / "state/cell/finished")
    assert (cost["chosen_lr"], cost["chosen_head_lr"]) == (5e-4, 7e-3)
    finetune_pack({"cell": cell}, *paths, table, "cpu")
    assert [row["outcome"] for row in read_tsv(folder / "pack.tsv")] == ["kept"]
    write_tsv(table, [row | {"lr": 6e-4}], COLUMNS)
    finetune_pack({"cell": cell}, *paths, table, "cpu")
    assert [row["outcome"] for row in read_tsv(folder / "pack.tsv")] == ["trained"]


@pytest.mark.parametrize("chosen", [0, 2])
def test_a_table_that_does_not_choose_one_row_is_refused(tmp_path: Path, chosen: int) -> None:
    rows = [{"fold": 0, "lr": 1e-3, "head_lr": 1e-3, "chosen": int(i < chosen)} for i in range(3)]
    write_tsv(tmp_path / "search.tsv", rows, COLUMNS)
    with pytest.raises(UserError, match=r"search\.tsv does not choose one row of each fold; start"):
        chosen_rates(tmp_path / "search.tsv")


def test_of_each_fold_the_cell_of_most_data_and_the_first_seed_is_searched() -> None:
    some = [
        Cell("ad", "vit", "mae", "lora", fraction(percent), seed, fold)
        for percent in (10, 100, 50)
        for seed in (3, 1, 2)
        for fold in (2, 1)
    ]
    assert searched(some) == [Cell("ad", "vit", "mae", "lora", fraction(100), 1, fold) for fold in (1, 2)]
