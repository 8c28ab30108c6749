"""Tables in three formats, from fabricated predictions: the right numbers, and what is missing is shown."""

import csv
import dataclasses
import json

import pytest

from fabricated_results import small_config, small_results
from neuropeft.config import Config
from neuropeft.evaluate.against_controls import against_controls
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.scores import read_scores
from neuropeft.probe_names import PROBES
from neuropeft.publish.summary import print_summary
from neuropeft.publish.tables import write_tables

COUNTS = """backbone,method,encoder,head,total,as_published,published,contains
vit_b,full,88202496,1538,88204034,88204034,88204030,encoder + 2-class head
densenet121,scratch,11242625,2049,11244674,11244674,11 million,encoder + 2-class head
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, shared):
    folder = small_results(tmp_path_factory.mktemp("fabricated") / "results", shared)
    (folder / "counts.csv").write_text(COUNTS)
    write_tables(small_config(), folder, folder / "counts.csv", folder / "tables")
    return folder


def text(results, name):
    return (results / "tables" / name).read_text()


def rows_of(results, name, **wanted):
    with (results / "tables" / name).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def wide_rows(results, name):
    """Rows of a Markdown table as dicts, blanked repeats filled in again."""
    lines = [line for line in text(results, name).splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0][1:-1].split("|")]
    found = []
    for line in lines[2:]:
        row = dict(zip(header, (cell.strip() for cell in line[1:-1].split("|")), strict=True))
        for key in header[:3]:
            if row[key] or not found:
                break
            row[key] = found[-1][key]
        found.append(row)
    return found


def wide(results, name, task, metric, cohort, figure):
    found = [
        row
        for row in wide_rows(results, name)
        if row["Task"] == task
        and row["Metric"].startswith(metric)
        and row["Cohort"].startswith(cohort)
        and row["Figure"].startswith(figure)
    ]
    assert len(found) == 1
    return found[0]


def test_all_tables_exist_in_four_formats(results):
    for name in ("table1", "table2", "table3", "table4", "flow", "ranks", "costs"):
        for suffix in ("csv", "md", "tex", "html"):
            assert text(results, f"{name}.{suffix}")


@pytest.mark.parametrize("name", ["table2", "table3", "flow", "ranks", "costs"])
def test_a_table_of_simulated_data_says_so_in_each_format_for_readers(results, name):
    for suffix in ("md", "tex", "html"):
        assert "imulated" in text(results, f"{name}.{suffix}")
    assert "imulated" not in text(results, "table1.md"), "a network's parameters are no data"


def test_scores_csv_holds_the_collected_numbers(results):
    scores = read_scores(small_config(), results, with_draws=True)
    comparisons = {id(comparison.score): comparison for comparison in compare(scores)}
    rows = rows_of(results, "scores.csv")
    assert len(rows) == len(scores)
    for score, row in zip(scores, rows, strict=True):
        assert (row["method"], row["metric"]) == (score.contender.method, score.metric)
        assert (int(row["seeds"]), int(row["seeds_expected"])) == (
            len(score.values),
            len(score.contender.seeds),
        )
        if score.values:
            assert float(row["mean"]) == pytest.approx(score.mean, rel=1e-5)
            assert float(row["sd"]) == pytest.approx(score.sd, rel=1e-5, abs=1e-12)
            of_seeds = dict(pair.split("=") for pair in row["seed_values"].split())
            assert {int(seed): float(value) for seed, value in of_seeds.items()} == pytest.approx(
                score.values, rel=1e-5
            )
        else:
            assert row["mean"] == row["ci_low"] == "n/a"
        told = [row[name] for name in ("reference", "difference", "difference_ci_low", "difference_ci_high")]
        judged = [row[name] for name in ("p", "p_holm", "verdict", "within_noise")]
        if (one := comparisons.get(id(score))) is None:
            assert {*told, *judged} == {"n/a"}
        else:
            numbers = (one.difference, one.ci_low, one.ci_high)
            assert told == [one.reference, *(f"{number:.6g}" for number in numbers)]
            noise = one.verdict == "within noise"
            assert judged == [f"{one.p:.6g}", f"{one.p_holm:.6g}", one.verdict, str(int(noise))]
    assert {row["verdict"] for row in rows} >= {"worse", "within noise", "n/a"}
    assert {row["trainable"] for row in rows if row["method"] == "lora"} == {"1181186", "295682"}
    assert {row["trainable"] for row in rows if row["backbone"] == "control"} == {"n/a"}


def test_comparisons_stand_beside_their_reference_and_are_marked_in_table3(results):
    rows = rows_of(
        results, "comparisons.csv", task="ad", cohort="OASIS", metric="brier", subset="fraction-100"
    )
    by_method = {row["method"]: row for row in rows if row["backbone"] == "vit_b"}
    assert by_method["full"]["verdict"] == "reference"
    assert by_method["scratch"]["verdict"] == "worse"
    assert by_method["probe_mean"]["tie_group"] == "n/a", "a probe is no method"
    lines = [line for line in text(results, "comparisons.md").splitlines() if "| OASIS, zero-shot" in line]
    of_whole = [line for line in lines if "| 100 % |" in line]
    assert "Full fine-tune | 0." in of_whole[0] or "Attention fine-tune | 0." in of_whole[0], "the best first"
    assert not [line for line in lines if "Control" in line or "Frozen" in line]
    shown = wide(results, "table3.md", "ad", "Brier", "OASIS", "mean")
    marks = {"better": "+", "worse": "-", "within noise": "="}
    for method, label in (("scratch", "Scratch"), ("attention", "Attention fine-tune")):
        assert shown[f"ViT-B {label}"].endswith(f") {marks[by_method[method]['verdict']]}")
    assert shown["ViT-B Full fine-tune"].endswith(")")


def test_table3_shows_mean_sd_interval_and_seeds(results):
    (row,) = rows_of(
        results, "table3.csv", task="ad", cohort="ADNI", metric="auc", backbone="vit_b", method="full"
    )
    shown = wide(results, "table3.md", "ad", "AUC", "ADNI", "mean (SD), 3 seeds")
    value = f"{float(row['mean']):.4f} ({float(row['sd']):.4f})"
    assert shown["ViT-B Full fine-tune"] == value
    assert (shown["Cohort"], shown["Metric"]) == ("ADNI, n = 20", "AUC, higher is better")
    interval = wide(results, "table3.md", "ad", "AUC", "ADNI", "95 % interval")["ViT-B Full fine-tune"]
    assert interval == f"{float(row['ci_low']):.3f} to {float(row['ci_high']):.3f}"
    assert value in text(results, "table3.tex")
    assert interval in text(results, "table3.tex")
    assert wide(results, "table3.md", "ad", "AUC", "OASIS", "mean")["Cohort"] == "OASIS, zero-shot, n = 40"
    metrics = {(row["Task"], row["Metric"].split(",")[0]) for row in wide_rows(results, "table3.md")}
    assert metrics == {
        *(("ad", name) for name in ("trainable parameters", "AUC", "balanced accuracy", "Brier score")),
        *(("age", name) for name in ("trainable parameters", "MAE (years)", "Pearson r")),
    }


def test_tables_of_folds_say_so(tmp_path, capsys, shared):
    config = small_config(splits={"folds": 3})
    small_results(tmp_path, shared, config)
    (tmp_path / "counts.csv").write_text(COUNTS)
    write_tables(config, tmp_path, tmp_path / "counts.csv", tmp_path / "tables")
    shown = text(tmp_path, "table3.md")
    assert "90 of 90 cells have scores. Cross-validation, 3-fold." in shown
    assert "- 3-fold: every subject is tested on once per seed." in shown
    assert (
        wide(tmp_path, "table3.md", "ad", "AUC", "ADNI", "mean (SD), 3 seeds, 3-fold")["Cohort"]
        == "ADNI, n = 60"
    )
    assert {row["fold"] for row in rows_of(tmp_path, "costs.csv")} == {"1", "2", "3"}
    print_summary(config, tmp_path)
    assert "n = 60 test subjects (3-fold), 100 % of the training subjects" in capsys.readouterr().out


def test_incomplete_and_missing_cells_are_shown_as_such(results, tmp_path):
    assert wide(results, "table3.md", "ad", "AUC", "ADNI", "mean")["ViT-B LoRA"].endswith(" 2/3")
    assert "29 of 30 cells have scores" in text(results, "table3.md")
    nothing = tmp_path / "results"
    (tmp_path / "counts.csv").write_text(COUNTS)
    write_tables(small_config(), nothing, tmp_path / "counts.csv", nothing / "tables")
    shown = wide(nothing, "table3.md", "ad", "AUC", "ADNI", "mean")
    assert shown["ViT-B LoRA"] == shown["Control: predict the mean"] == "n/a (0/3)"
    assert shown["Cohort"] == "ADNI, n = n/a"
    assert "0 of 30 cells have scores" in text(nothing, "table3.md")
    assert {row["status"] for row in rows_of(nothing, "costs.csv")} == {"missing"}
    assert rows_of(nothing, "table2.csv", cohort="ADNI", source="ours")[0]["scans"] == "n/a"


def test_controls_come_last_whatever_the_configurations_order(results, tmp_path):
    methods = json.loads(small_config().model_dump_json())["methods"]
    config = small_config(methods=dict(reversed(methods.items())))  # shuffled labels come first there
    write_tables(config, results, results / "counts.csv", tmp_path / "tables")
    names = list(wide(tmp_path, "table3.md", "age", "MAE (years)", "SimA", "mean"))[4:]
    assert names[:2] == ["ViT-B LayerNorm fine-tune", "ViT-B LoRA"]
    assert [name.startswith("Control: ") for name in names] == [False] * (len(names) - 5) + [True] * 5


def test_controls_stand_beside_the_methods(results):
    shown = wide(results, "table3.md", "age", "MAE (years), lower is better", "SimA", "mean")
    controls = [name for name in shown if name.startswith("Control: ")]
    assert controls == [
        "Control: ViT-B full on shuffled labels",
        "Control: predict the mean",
        "Control: age + sex, except the target",
        "Control: sex + site",
        "Control: linear model on voxels",
    ]
    assert [name for name in controls if shown[name] in ("", "-")] == [controls[2]]  # of age
    assert shown["Control: sex + site"].endswith("n = 13")  # fewer subjects than the 17
    assert shown["ViT-B Attention fine-tune"] == "-"  # not in the grid for this task


def test_probes_stand_between_methods_and_controls_with_what_they_do_by_chance(results):
    shown = wide(results, "table3.md", "age", "MAE (years), lower is better", "SimA", "mean")
    probes = ("linear probe, mean-pooled tokens", "linear probe, all tokens", "k-NN")
    frozen = [name for name in shown if name.startswith("Frozen ")]
    assert frozen == [
        *(f"Frozen {name}: {probe}" for name in ("ViT-B", "untrained ViT-B") for probe in probes),
        *(f"Frozen untrained DenseNet121: {probe}" for probe in probes),
    ]
    names = list(shown)
    first = names.index(frozen[0])
    assert names[first : first + len(frozen)] == frozen
    assert names[first - 1] == "DenseNet121 Scratch"
    assert names[first + len(frozen)].startswith("Control: ")
    chance = wide(results, "table3.md", "age", "MAE (years), lower is better", "SimA", "p, permuted")
    mean_pooled, neighbours = (f"Frozen ViT-B: {probe}" for probe in (probes[0], probes[2]))
    (row,) = rows_of(
        results, "table3.csv", task="age", cohort="SimA", metric="mae", pretraining="mae", method="probe_mean"
    )
    assert chance[mean_pooled] == f"{float(row['p_permutation']):.3f}" == "0.048"  # the least of 20
    assert float(row["null_mean"]) > float(row["mean"])
    assert chance[neighbours] == chance["ViT-B LoRA"] == "-"
    assert row["reference"] == "vit_b/mae/full"
    rows = rows_of(results, "scores.csv", task="age", metric="mae", method="probe_concat")
    assert {(row["pretraining"], row["subset"]) for row in rows} == {
        (start, f"fraction-{percent}") for start in ("mae", "none") for percent in (25, 100)
    }
    assert "29 of 30 cells" in text(results, "table3.md")


def test_a_method_is_told_where_it_stands_against_its_best_control(results):
    wanted = {"task": "ad", "cohort": "ADNI", "metric": "auc", "subset": "fraction-100"}
    rows = rows_of(results, "scores.csv", **wanted)
    rivals = {
        "/".join(row[key] for key in ("backbone", "pretraining", "method")): float(row["mean"])
        for row in rows
        if row["seeds"] == row["seeds_expected"]
    }
    (full,) = (row for row in rows if (row["backbone"], row["method"]) == ("vit_b", "full"))
    probes = [f"vit_b/{start}/{probe}" for start in ("mae", "none") for probe in PROBES]
    controls = [*probes, *(name for name in rivals if name.startswith("control/"))]
    assert full["best_control"] == max(controls, key=rivals.get)
    over = float(full["mean"]) - rivals[full["best_control"]]
    assert float(full["over_control"]) == pytest.approx(over, abs=1e-5)
    assert float(full["over_control_ci_low"]) < over < float(full["over_control_ci_high"])
    shown = wide(results, "table3.md", "ad", "AUC", "ADNI", "best control")
    for method, label in (("full", "ViT-B Full fine-tune"), ("layernorm", "ViT-B LayerNorm fine-tune")):
        (row,) = (row for row in rows if (row["backbone"], row["method"]) == ("vit_b", method))
        low, high = (float(row[f"over_control_ci_{end}"]) for end in ("low", "high"))
        noise = ", within noise" if low <= 0 <= high else ""
        side = "below" if float(row["over_control"]) < 0 else "above"
        assert row["below_control"] == str(int(side == "below"))
        assert shown[label].startswith(f"{side}{noise}: ")
    assert shown["Control: predict the mean"] == "-"
    # Of an error, less is better.
    # Other seeds are no reason to compare with nothing.
    scores = read_scores(small_config(), results, with_draws=True)
    fewer = [
        dataclasses.replace(
            one, contender=dataclasses.replace(one.contender, seeds=(0, 1)), values={0: 0.1, 1: 0.1}
        )
        if one.contender.is_method
        else one
        for one in scores
    ]
    assert len(against_controls(fewer)) >= len(against_controls(scores)) > 0
    (age,) = rows_of(
        results, "table3.csv", task="age", cohort="SimA", metric="mae", backbone="vit_b", method="lora"
    )
    (best,) = (
        row
        for row in rows_of(results, "table3.csv", task="age", cohort="SimA", metric="mae")
        if "/".join(row[key] for key in ("backbone", "pretraining", "method")) == age["best_control"]
    )
    assert (age["below_control"] == "1") == (float(age["mean"]) > float(best["mean"]))


def test_published_figures_only_beside_real_cohorts_of_the_papers_names(results, tmp_path):
    assert wide(results, "table3.md", "ad", "AUC", "ADNI", "published")["ViT-B LoRA"] == "0.8153 (0.0500)"
    oasis = wide(results, "table4.md", "ad", "AUC", "OASIS", "published")
    assert oasis["ViT-S Attention fine-tune"] == "0.8306 (0.0163)"
    lora = rows_of(results, "table3.csv", cohort="ADNI", backbone="vit_b", method="lora")
    assert {row["metric"]: (row["published_mean"], row["published_sd"]) for row in lora} == {
        "auc": ("0.8153", "0.05"),
        **dict.fromkeys(("balanced_accuracy", "brier"), ("n/a", "n/a")),
    }
    assert not [
        row
        for row in wide_rows(results, "table3.md")
        if row["Task"] == "age" and row["Figure"] == "published"
    ]
    raw = json.loads(small_config().model_dump_json())
    for cohort in ("ADNI", "OASIS"):
        raw["cohorts"][cohort] = {"simulated": {"subjects": 60}}
    write_tables(Config.model_validate(raw), results, results / "counts.csv", tmp_path)
    for name in ("table2", "table3", "table4"):
        assert "published:" not in (tmp_path / f"{name}.md").read_text()
        assert "ADNI (simulated)" in (tmp_path / f"{name}.md").read_text()


def test_costs_are_listed_for_every_cell(results):
    rows = rows_of(results, "costs.csv")
    assert len(rows) == 3 * 3 * (5 + 5 + 1) + 3 * 2 * 4
    assert len([row for row in rows if row["status"] == "missing"]) == 4
    (row,) = rows_of(
        results, "costs.csv", task="ad", backbone="vit_b", method="lora", subset="fraction-100", seed="0"
    )
    assert (row["trainable"], row["delta_bytes"], row["steps"]) == ("1181186", str(4 * 1181186), "20")
    assert (row["peak_memory_bytes"], row["train_seconds"]) == (str(3 * 2**30), "61.5")
    assert (row["resumed"], row["accumulation"]) == ("0", "1")
    shown = wide(results, "table3.md", "ad", "trainable parameters", "", "")
    assert shown["ViT-B LoRA"] == "1,181,186"
    assert "| Task | Contender | Trained parameters |" in text(results, "costs.md")


def test_simulated_data_is_called_simulated(results):
    assert "SimA (simulated), n = 17" in text(results, "table3.md")
    assert "Simulated data: SimA, SimB" in text(results, "table3.tex")
    assert "SimA (simulated)" in text(results, "table2.md")
    assert "Simulated data" in text(results, "table2.md")
    simulated = {row["cohort"]: row["simulated"] for row in rows_of(results, "scores.csv")}
    assert simulated == {"ADNI": "0", "OASIS": "0", "SimA": "1", "SimB": "1"}
    assert "Simulated" not in text(results, "table4.md")


def test_table1_compares_counts(results):
    rows = rows_of(results, "table1.csv")
    assert [row["difference"] for row in rows] == ["4", "n/a"]
    shown = [list(row.values()) for row in wide_rows(results, "table1.md")]
    contains = "encoder + 2-class head"
    assert shown == [
        ["ViT-B", "Full fine-tune", "88,202,496", "1,538", *2 * ["88,204,034"], "88,204,030", "4", contains],
        ["DenseNet121", "Scratch", "11,242,625", "2,049", *2 * ["11,244,674"], "11 million", "n/a", contains],
    ]


def test_table2_counts_stored_scans_beside_the_papers(results):
    ours, paper = rows_of(results, "table2.csv", cohort="ADNI")
    assert (ours["scans"], ours["excluded"], ours["subjects"]) == ("119", "1", "60")
    assert (ours["female"], ours["male"]) == ("20", "40")
    assert (float(ours["age_min"]), float(ours["age_max"])) == (50.5, 79.5)
    assert (paper["source"], paper["scans"], paper["subjects"]) == ("published", "4098", "1188")
    shown = {
        (row["Cohort"], row["Source"]): list(row.values())[3:] for row in wide_rows(results, "table2.md")
    }
    assert shown["ADNI", "ours"] == ["119", "1", "60", "50.5-79.5", "20F/40M"]
    assert shown["ADNI", "published"] == ["4,098", "n/a", "1,188", "55.7-92.8", "556F/632M"]
    part = "(of 39 subjects)"
    assert shown["OASIS", "ours"] == ["79", "1", "40", f"50.5-79.5 {part}", f"14F/25M {part}"]
    assert "inconsistent" in text(results, "table2.md")  # OASIS: 341 + 359 is not 600
    assert "pretraining mae, age" in text(results, "table2.md")
    assert rows_of(results, "table2.csv", cohort="OASIS", source="ours")[0]["use"] == "zero-shot ad"


def test_one_vit_leaves_table4_empty_in_words(results, tmp_path):
    grid = json.loads(small_config().model_dump_json())["grid"]
    grid[0]["backbones"] = ["vit_b"]
    write_tables(small_config(grid=grid), results, results / "counts.csv", tmp_path)
    assert "no further backbone" in (tmp_path / "table4.md").read_text()


def test_a_task_without_the_full_fraction_says_so(results, tmp_path):
    grid = json.loads(small_config().model_dump_json())["grid"]
    grid[0]["fractions"] = [10, 50]
    write_tables(small_config(grid=grid), results, results / "counts.csv", tmp_path)
    content = (tmp_path / "table3.md").read_text()
    assert "ad (50 % of the training subjects)" in content
    assert "0.8153 (0.0500)" not in content  # the paper's figure is for all training data


def test_latex_is_balanced_and_escaped(results):
    for name in ("table1", "table2", "table3", "table4", "costs"):
        content = text(results, f"{name}.tex")
        body = content.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
        columns = content.split(r"\begin{tabular}{")[1].split("}")[0]
        for line in filter(None, body.splitlines()):
            assert line.endswith(r" \\")
            assert line.replace(r"\&", "").count("&") == len(columns) - 1
        assert content.count("{") - content.count(r"\{") == content.count("}") - content.count(r"\}")
        assert content.isascii()
