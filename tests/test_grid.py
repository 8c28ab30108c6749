"""The run table holds the valid cells of the grid, each once."""

import json
from pathlib import Path

import pytest
import yaml

from neuropeft import grid
from neuropeft.config import Splits
from neuropeft.config.read import load_config, read_config
from neuropeft.errors import UserError
from neuropeft.split_names import seed_and_fold, split_name
from neuropeft.subsets import Subset, fraction

ROOT = Path(__file__).parents[1]


@pytest.fixture
def paper(tmp_path):
    raw = yaml.safe_load((ROOT / "config.yaml").read_text())
    for cohort in raw["cohorts"].values():
        (tmp_path / cohort["bids"]).mkdir(parents=True)
    return load_config(raw, tmp_path)


def test_the_papers_grid(paper):
    cells = grid.cells(paper)
    # 3 tasks x (5 ViT-B methods + DenseNet + control) x 3 seeds, AD at four more fractions, and ViT-S at five
    assert len(cells) == 3 * 7 * 3 + 4 * 6 * 3 + 5 * 5 * 3
    controls = [cell for cell in cells if cell.method == "shuffled"]
    assert {cell.task for cell in controls} == {"ad", "age", "pd"}, "every table has its control"
    assert all(paper.methods[cell.method].shuffle_labels for cell in controls)
    assert len(cells) == len(set(cells))
    assert {cell.method for cell in cells if cell.backbone == "densenet121"} == {"scratch"}
    assert all((cell.method == "scratch") == (cell.pretraining == "none") for cell in cells)
    assert grid.pretrained(paper) == [("mae_ukb", "vit_b"), ("mae_ukb", "vit_s")]
    assert grid.used_cohorts(paper) == ["UKB", "ADNI", "OASIS", "Taiwan", "UPenn"]


def test_with_folds_the_encoder_of_a_cohort_that_is_tested_on_is_one_per_fold(paper):
    age = paper.tasks["age"].model_copy(update={"train": "UKB"})
    folded = paper.model_copy(update={"splits": Splits(folds=3), "tasks": {**paper.tasks, "age": age}})
    cells = grid.cells(folded)
    assert len(cells) == 3 * len(grid.cells(paper))
    assert {cell.split for cell in cells if cell.seed == 1} == {f"seed-1_fold-{fold}" for fold in (1, 2, 3)}
    assert grid.encoder_folds(folded, "mae_ukb") == [1, 2, 3], "age is trained on UKB here"
    cell = grid.Cell("ad", "vit_b", "mae_ukb", "lora", fraction(10), 1, 2)
    assert grid.encoder_of(folded, cell) == ("mae_ukb", "vit_b", 2)
    assert grid.encoder_of(folded, cell._replace(pretraining="none", method="scratch")) is None
    assert len(grid.encoders(folded)) == 2 * 3
    elsewhere = [block.model_copy(update={"tasks": ["ad"]}) for block in folded.grid]
    without = folded.model_copy(update={"grid": elsewhere})
    assert grid.encoder_folds(without, "mae_ukb") == grid.encoder_folds(paper, "mae_ukb") == [0]
    assert grid.encoder_of(without, cell) == ("mae_ukb", "vit_b", 0)


def test_methods_have_untrained_twins_where_a_block_lists_none(paper):
    methods = ["scratch", "full", "attention", "lora", "layernorm"]
    block = paper.grid[0].model_copy(
        update={
            "methods": methods,
            "backbones": ["vit_b"],
            "pretraining": ["none", "mae_ukb"],
            "tasks": ["ad"],
        }
    )
    found = {
        (cell.method, cell.pretraining) for cell in grid.cells(paper.model_copy(update={"grid": [block]}))
    }
    adapted = {(method, start) for method in methods[2:] for start in ("none", "mae_ukb")}
    assert found == {("scratch", "none"), ("full", "mae_ukb")} | adapted
    alone = paper.model_copy(
        update={"grid": [block.model_copy(update={"methods": ["full"], "pretraining": ["none"]})]}
    )
    with pytest.raises(
        UserError, match=r"`grid\.0` has no valid cell: full on vit_b cannot start from none: it needs"
    ):
        grid.cells(alone)


def test_a_pretraining_that_goes_on_from_another_needs_its_cohort_and_its_folds(paper):
    own = paper.pretraining["mae_ukb"]
    chained = paper.model_copy(
        update={
            "pretraining": {
                "mae_ukb": own.model_copy(update={"start": "first"}),
                "first": own.model_copy(update={"cohort": "ADNI"}),
                "unused": own,
            }
        }
    )
    assert grid.pretrained(chained) == [
        (name, vit) for name in ("first", "mae_ukb") for vit in ("vit_b", "vit_s")
    ]
    assert "start" not in json.loads(grid.pretraining_spec(chained, "mae_ukb", "vit_b")), "its file tells"
    assert grid.used_cohorts(chained) == grid.used_cohorts(paper)
    folded = chained.model_copy(update={"splits": Splits(folds=3)})
    for name in ("first", "mae_ukb"):  # whose encoder has seen the subjects of its start
        assert grid.encoder_folds(folded, name) == [1, 2, 3]


def test_a_name_of_a_split_tells_seed_and_fold():
    for place in ((0, 0), (12, 0), (3, 10)):
        assert seed_and_fold(f"results/splits/ad/{split_name(*place)}.tsv") == place
    with pytest.raises(UserError, match=r"call it seed-<number>\.tsv or"):
        seed_and_fold("fold-2.tsv")


def test_a_cells_specification_names_what_defines_it_and_nothing_else(paper):
    cell = grid.Cell("ad", "vit_b", "mae_ukb", "lora", fraction(10), 2)
    spec = grid.cell_spec(paper, cell)
    assert spec["method"] == {
        "kind": "lora",
        "r": 32,
        "alpha": 32.0,
        "targets": ["q", "v"],
        "dropout": 0.0,
        "lr": 1e-3,
        "head_lr": 1.5e-4,
        "weight_decay": 0.0,
    }
    assert (spec["subset"], spec["seed"], spec["shuffle_labels"]) == ("fraction-10", 2, False)
    assert "decoder" not in spec["backbone"], "a changed decoder must not retrain cells by their parameters"
    # What a search chooses counts, not how it was searched.
    known = type(paper.training).model_fields.keys() - {"search"}
    assert spec["training"].keys() == known, "or a changed one is ignored"


def test_the_demo_trains_on_shuffled_labels_too_and_is_tested_at_another_site():
    demo = read_config(ROOT / "workflow/configs/demo.yaml", ROOT)
    shuffled = {cell for cell in grid.cells(demo) if grid.cell_spec(demo, cell)["shuffle_labels"]}
    assert {cell.method for cell in shuffled} == {"shuffled"}
    assert {cell.task for cell in shuffled} == set(demo.tasks) == {"ad", "age"}
    for task in demo.tasks.values():
        sites = [demo.cohorts[cohort].simulated.site for cohort in (task.train, *task.zero_shot)]
        assert sites == ["A", "B"]


def test_the_real_run_is_brain_age_by_every_method_and_sex_zero_shot_on_a_second_cohort():
    ixi = read_config(ROOT / "workflow/configs/ixi.yaml", None)
    found = {
        task: {(cell.method, cell.pretraining) for cell in grid.cells(ixi) if cell.task == task}
        for task in ixi.tasks
    }
    assert {method for method, _ in found["age"]} == set(ixi.methods)
    assert {("scratch", "none"), ("lora", "none"), ("lora", "factors")} <= found["sex"] <= found["age"]
    assert {start for _, start in found["age"]} == {"none", *ixi.pretraining}
    assert all((task.train, task.zero_shot) == ("IXI", ["ds002748"]) for task in ixi.tasks.values())


def test_the_papers_autoencoders(paper):
    for name, depth, heads in (("vit_b", 8, 12), ("vit_s", 4, 8)):
        spec = json.loads(grid.pretraining_spec(paper, "mae_ukb", name))
        assert spec["decoder"] == {"width": 384, "depth": depth, "heads": heads}
        assert (spec["kind"], spec["mask_ratio"], spec["mask"]) == ("mae", 0.75, "all")
        # 1,000 epochs of 38,703 scans
        assert spec["steps"] * spec["batch_size"] == pytest.approx(1000 * 38_703, rel=0.01)


# Peak learning rates that are in use for each method: few trained parameters want a high one.
RATES = {
    "scratch": (1e-5, 3e-4),
    "full": (1e-5, 3e-4),
    "attention": (1e-5, 3e-4),
    "lora": (3e-4, 3e-3),
    "layernorm": (1e-3, 1e-2),
}


def test_the_papers_training(paper):
    for name, (low, high) in RATES.items():
        method = grid.cell_spec(paper, grid.Cell("ad", "vit_b", "mae_ukb", name, 10, 0))["method"]
        assert low <= method["lr"] <= high, name
        assert method["head_lr"] == 1.5e-4, name
    assert paper.training.patience == 10
    assert 30 <= paper.training.epochs <= 50


def test_a_changed_method_changes_its_own_cells_only(paper):
    lora = paper.methods["lora"].model_copy(update={"r": 4})
    changed = paper.model_copy(update={"methods": {**paper.methods, "lora": lora}})
    different = {
        cell.method
        for cell in grid.cells(paper)
        if grid.cell_spec(paper, cell) != grid.cell_spec(changed, cell)
    }
    assert different == {"lora"}


def test_what_cannot_be_is_skipped_and_told(paper):
    lines = grid.skipped(paper)
    assert "lora on densenet121 needs linear, which the backbone does not provide" in lines
    reason = "full on densenet121 cannot start from mae_ukb: that needs tokens of whole scans, which the back"
    assert any(line.startswith(reason) for line in lines)
    assert len(lines) == len(set(lines)) == 4, "attention and layernorm too, however many blocks list them"
    alone = paper.grid[0].model_copy(update={"backbones": ["vit_b"], "pretraining": []})
    lines = grid.skipped(paper.model_copy(update={"grid": [alone]}))
    assert lines[0] == "full on vit_b needs an entry in `pretraining`"
    assert len(lines) == 4, "scratch needs none"


def test_what_a_cohorts_input_does_not_provide_is_skipped_and_told(paper, monkeypatch):
    before = grid.cells(paper)
    monkeypatch.setattr(type(paper.backbones["densenet121"]), "needs", frozenset({"2D"}))
    monkeypatch.setattr(type(paper.tasks["age"]), "needs", frozenset({"colour"}))
    lines = grid.skipped(paper)
    assert "ad on densenet121 needs 2D, which input t1w of ADNI does not provide" in lines
    assert "age on vit_b needs colour, which input t1w of ADNI does not provide" in lines
    left = [cell for cell in before if cell.backbone != "densenet121" and cell.task != "age"]
    assert grid.cells(paper) == left
    monkeypatch.setattr(type(paper.backbones["vit_b"]), "needs", frozenset({"2D"}))
    lines = grid.skipped(paper)
    unfit = "the backbone needs 2D, which input t1w of UKB does not provide"
    assert f"full on vit_b cannot start from mae_ukb: {unfit}" in lines


def test_a_block_has_fractions_and_shots_and_all_data_if_neither(paper):
    def subsets(**chosen):
        block = paper.grid[0].model_copy(update={"fractions": None, **chosen})
        return [
            str(one) for one in grid.subsets_of(grid.cells(paper.model_copy(update={"grid": [block]})), "ad")
        ]

    assert subsets() == ["fraction-100"]
    assert subsets(shots=[10, 2]) == ["shots-2", "shots-10"]
    assert subsets(shots=[2], fractions=[100, 5]) == ["shots-2", "fraction-5", "fraction-100"]
    for name in ("shots-2", "fraction-25"):
        assert str(Subset.parse(name)) == name
    with pytest.raises(UserError, match="write fraction-<percent> or shots-<number>"):
        Subset.parse("25")


def test_a_block_without_any_valid_cell_is_an_error(paper):
    block = paper.grid[0].model_copy(update={"backbones": ["densenet121"], "methods": ["lora"]})
    with pytest.raises(UserError, match=r"`grid\.0` has no valid cell"):
        grid.cells(paper.model_copy(update={"grid": [block]}))
