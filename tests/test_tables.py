"""Tables in three formats, from fabricated predictions: the right numbers, and what is missing is shown."""

import csv
import json
import re

import pytest

from fabricated_results import fabricate, small_config
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.evaluate.scores import collect
from neuropeft.publish.sheet import Sheet, escape_latex, latex, markdown
from neuropeft.publish.summary import print_summary
from neuropeft.publish.tables import write_tables

COUNTS = """backbone,method,encoder,head,total,as_published,published,contains
vit_b,full,88202496,1538,88204034,88204034,88204030,encoder + 2-class head
densenet121,scratch,11242625,2049,11244674,11244674,11 million,encoder + 2-class head
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fabricated") / "results"
    fabricate(small_config(), folder)
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


def test_all_tables_exist_in_three_formats(results):
    for number in (1, 2, 3, 4):
        for suffix in ("csv", "md", "tex"):
            assert text(results, f"table{number}.{suffix}")


def test_scores_csv_holds_the_collected_numbers(results):
    scores = collect(small_config(), results)
    rows = rows_of(results, "scores.csv")
    assert len(rows) == len(scores)
    for score, row in zip(scores, rows, strict=True):
        assert (row["method"], row["metric"]) == (score.group.method, score.metric)
        assert (int(row["seeds"]), int(row["seeds_expected"])) == (len(score.values), len(score.expected))
        if score.values:
            assert float(row["mean"]) == pytest.approx(score.mean, rel=1e-5)
            assert float(row["sd"]) == pytest.approx(score.sd, rel=1e-5, abs=1e-12)
        else:
            assert row["mean"] == row["ci_low"] == "n/a"


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


def test_controls_stand_beside_the_methods(results):
    shown = wide(results, "table3.md", "age", "MAE (years), lower is better", "SimA", "mean")
    controls = [name for name in shown if name.startswith("Control: ")]
    assert controls == [
        "Control: ViT-B full on shuffled labels",
        "Control: predict the mean",
        "Control: age + sex, except the target",
        "Control: linear model on voxels",
    ]
    assert all(shown[name] not in ("", "-") for name in controls)
    assert shown["Control: age + sex, except the target"].endswith("n = 13")  # fewer subjects than the 17
    assert shown["ViT-B Attention fine-tune"] == "-"  # not in the grid for this task


def test_published_figures_only_beside_real_cohorts_of_the_papers_names(results, tmp_path):
    assert wide(results, "table3.md", "ad", "AUC", "ADNI", "published")["ViT-B LoRA"] == "0.8153 (0.0500)"
    oasis = wide(results, "table4.md", "ad", "AUC", "OASIS", "published")
    assert oasis["ViT-S Attention fine-tune"] == "0.8306 (0.0163)"
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
        results, "costs.csv", task="ad", backbone="vit_b", method="lora", fraction="100", seed="0"
    )
    assert (row["trainable"], row["delta_bytes"], row["epochs"]) == ("1181186", str(4 * 1181186), "20")
    assert (row["peak_memory_bytes"], row["train_seconds"]) == (str(3 * 2**30), "61.5")
    assert (row["resumed"], row["accumulation"]) == ("0", "1")
    shown = wide(results, "table3.md", "ad", "trainable parameters", "", "")
    assert shown["ViT-B LoRA"] == "1,181,186"


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
    assert "88,204,034" in text(results, "table1.md")


def test_table2_counts_stored_scans_beside_the_papers(results):
    ours, paper = rows_of(results, "table2.csv", cohort="ADNI")
    assert (ours["scans"], ours["excluded"], ours["subjects"]) == ("119", "1", "60")
    assert (ours["female"], ours["male"]) == ("30", "30")
    assert (float(ours["age_min"]), float(ours["age_max"])) == (50.5, 79.5)
    assert (paper["source"], paper["scans"], paper["subjects"]) == ("published", "4098", "1188")
    assert "inconsistent" in text(results, "table2.md")  # OASIS: 341 + 359 is not 600
    assert "pretraining mae, age" in text(results, "table2.md")
    assert rows_of(results, "table2.csv", cohort="OASIS", source="ours")[0]["use"] == "zero-shot ad"


def test_one_vit_leaves_table4_empty_in_words(results, tmp_path):
    grid = json.loads(small_config().model_dump_json())["grid"]
    grid[0]["backbones"] = ["vit_b"]
    write_tables(small_config(grid=grid), results, results / "counts.csv", tmp_path)
    assert "no further ViT" in (tmp_path / "table4.md").read_text()


def test_a_task_without_the_full_fraction_says_so(results, tmp_path):
    grid = json.loads(small_config().model_dump_json())["grid"]
    grid[0]["fractions"] = [10, 50]
    write_tables(small_config(grid=grid), results, results / "counts.csv", tmp_path)
    content = (tmp_path / "table3.md").read_text()
    assert "ad (50 % of the training subjects)" in content
    assert "0.8153 (0.0500)" not in content  # the paper's figure is for all training data


def test_latex_is_balanced_and_escaped(results):
    for number in (1, 2, 3, 4):
        content = text(results, f"table{number}.tex")
        body = content.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
        columns = content.split(r"\begin{tabular}{")[1].split("}")[0]
        for line in filter(None, body.splitlines()):
            assert line.endswith(r" \\")
            assert line.replace(r"\&", "").count("&") == len(columns) - 1
        assert content.count("{") - content.count(r"\{") == content.count("}") - content.count(r"\}")
        assert content.isascii()
    assert escape_latex("a_b & 5 % [#]") == r"a\_b \& 5 \% [\#]"
    assert escape_latex("[x]") == "{[x]}"


def test_sheet_header_lines_and_breaks():
    sheet = Sheet("table9", "c", ("a", "ViT-B\nLoRA"), (("1", "2"), ("3", "x|y")), breaks=frozenset({1}))
    assert "| a | ViT-B LoRA |" in markdown(sheet)
    assert r"x\|y" in markdown(sheet)
    assert " & ViT-B \\\\\na & LoRA \\\\\n\\midrule\n1 & 2 \\\\\n\\midrule\n3 & x\\textbar{}y" in latex(sheet)


def test_summary_shows_scores_controls_and_places(results, capsys):
    print_summary(small_config(), results)
    printed = capsys.readouterr().out
    assert printed.startswith("Simulated data (SimA, SimB)")
    block = printed.split("ad on ADNI")[1].split("\n\n")[0]
    best = rows_of(
        results,
        "scores.csv",
        task="ad",
        cohort="ADNI",
        metric="auc",
        backbone="vit_b",
        method="attention",
        fraction="100",
    )[0]
    assert f"{float(best['mean']):.4f}" in block
    assert "2/3" in block
    assert block.index("ViT-B Scratch") < block.index("Control: predict the mean")
    assert "age on SimB (simulated), zero-shot: MAE (years)" in printed
    for place in ("tables", "figures", "qc/ADNI/index.html"):
        assert f" {results / place}\n" in printed


@pytest.mark.parametrize(("task", "cohort", "higher_first"), [("ad", "ADNI", True), ("age", "SimA", False)])
def test_summary_shows_the_best_method_first(results, capsys, task, cohort, higher_first):
    print_summary(small_config(), results)
    block = capsys.readouterr().out.split(f"{task} on {cohort}")[1].split("\n\n")[0]
    means = [float(mean) for mean in re.findall(r"^  ViT-B [^\d]*(\d+\.\d+) ", block, flags=re.MULTILINE)]
    assert len(set(means)) > 2
    assert means == sorted(means, reverse=higher_first)


def test_summary_without_tables_tells_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run the workflow"):
        print_summary(small_config(), tmp_path)
