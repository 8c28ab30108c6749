"""One run of the workflow from simulated scans to tables, and what it does again when something changes."""

import copy
import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from neuropeft.cli import main
from workflow_command import STEPS, TINY, dry_run, jobs_in, snakemake, write_config

LORA = "ad/vit_xxs/mae/lora"
SEARCH = {"trials": 2, "share": 0.5, "sampler": "tpe", "ranges": {"lr": [0.3, 1.0], "r": [2, 4]}}
RUN = TINY | {"training": TINY["training"] | {"search": SEARCH}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of tiny.yaml."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_config(folder, RUN)
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--show-failed-logs")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


def test_a_run_ends_with_tables_figures_and_qc(finished):
    with (finished / "results/tables/scores.csv").open() as stream:
        scores = list(csv.DictReader(stream))
    tasks = {row["task"] for row in scores}
    methods = {row["method"] for row in scores}
    assert tasks == {"ad", "age"}
    assert {"scratch", "lora"} <= methods
    tables = (
        "table1",
        "table2",
        "table3",
        "table4",
        "subsets",
        "flow",
        "comparisons",
        "ranks",
        "confounds",
        "across_tasks",
        "learning_curves",
        "scans_to_match",
        "costs",
        "search",
        "ensembles",
        "calibration",
        "subgroups",
        "age_matched",
        "brain_age",
        "brain_age_bins",
    )
    for name in tables:
        for kind in ("csv", "md", "tex", "html"):
            assert (finished / f"results/tables/{name}.{kind}").stat().st_size > 0
    figures = (
        "figure1",
        "figure2",
        "figure3",
        "figure4",
        "ranks",
        "losses_pretraining",
        "losses_finetuning",
        "reliability",
        "age_errors",
    )
    for name in figures:
        for kind in ("png", "svg", "pdf"):
            assert (finished / f"results/figures/{name}.{kind}").stat().st_size > 0
    assert (finished / "results/qc/SimA/index.html").exists()
    page = (finished / "results/report.html").read_text()
    assert page.count("<img ") == len(list((finished / "results/figures").glob("*.png"))) - 1, (
        "all but that of further backbones, which there are none of"
    )
    assert "simulated" in (finished / "results/tables/table3.md").read_text()
    cost = json.loads((finished / "results/cells/ad/vit_xxs/mae/lora/shots-1/seed-1/cost.json").read_text())
    (chosen,) = rows_of(finished / f"results/search/{LORA}/chosen.tsv", delimiter="\t")
    assert (cost["chosen_lr"], cost["chosen_r"]) == (float(chosen["lr"]), int(chosen["r"]))
    assert cost["trainable"] == 2 * 2 * 2 * 48 * int(chosen["r"]), "A and B of q and v in two blocks"
    shown = rows_of(finished / "results/tables/search.csv")
    assert [(row["task"], row["method"], row["trials"]) for row in shown] == [
        (task, method, "2") for task in ("ad", "age") for method in ("lora", "scratch")
    ]


def test_test_subjects_are_kept_from_training_and_pretraining(finished):
    splits = finished / "results/splits/ad"
    sides = []
    for seed in (0, 1):
        with (splits / f"seed-{seed}.tsv").open() as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        sides.append({row["subject"] for row in rows if row["side"] == "test"})
    assert sides[0] == sides[1] != set()
    cost = json.loads((finished / "results/pretraining/mae/vit_xxs/cost.json").read_text())
    assert cost["train_scans"] + cost["validation_scans"] <= 10 - len(sides[0])
    for cohort, side, number in (("SimA", "test", len(sides[0])), ("SimB", "zero-shot", 4)):
        with (splits / f"leaks/pretraining-mae/{cohort}.tsv").open() as stream:
            rows = {row["side"]: int(row["scans"]) for row in csv.DictReader(stream, delimiter="\t")}
        assert rows == {side: number, "pretraining": cost["train_scans"] + cost["validation_scans"]}


def test_an_exported_model_gives_a_raw_scan_the_number_that_the_run_gave(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(finished)
    model, config = tmp_path / "model", write_config(tmp_path, RUN)
    assert main(["export", "--configfile", str(config), "--task", "age", "--out", str(model)]) == 0
    said = capsys.readouterr().out
    base, subset, split = re.search(r"\(age/(vit_xxs/\w+/\w+)/([\w-]+)/([\w-]+)\) is in", said).groups()
    card = (model / "README.md").read_text()
    assert "**Trained on simulated data: it says nothing about people.**" in card
    assert "Control: predict the mean" in card
    (row, *_) = [
        row
        for row in rows_of(Path(f"results/predictions/age/{base}/SimB.tsv"), delimiter="\t")
        if (row["subset"], f"seed-{row['seed']}") == (subset, split)
    ]
    (mask,) = Path("results/simulated/SimB").rglob(f"*{row['subject']}*brain_mask.nii.gz")
    (scan,) = Path("results/simulated/SimB").rglob(f"*{row['subject']}*_T1w.nii.gz")
    given = ["--skull-strip", "given", "--mask", str(mask)]
    assert main(["predict-scan", str(scan), "--model", str(model), *given]) == 0
    told = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert float(told["age"].split()[0]) == pytest.approx(float(row["score"]), abs=1e-5)


def test_a_second_run_does_nothing(finished):
    assert dry_run(finished, RUN) == {}


def test_a_longer_seed_list_runs_its_new_cells_only(finished):
    config = copy.deepcopy(RUN)
    config["grid"][1]["seeds"] = [0, 1, 2]
    jobs = dry_run(finished, config)
    # one shot and all subjects of seed 2 join the pack of ad by lora, which is predicted anew
    assert (jobs["finetune"], jobs["cell"], jobs["predict"]) == (1, 6, 2)
    assert jobs["score"] < len(list((finished / "results/scores").rglob("*.tsv"))), "age is not scored again"
    assert jobs["split"] == 1
    assert not {"pretrain", "pack_cohort", *STEPS} & jobs.keys()


def test_other_seeds_pretrain_nothing_anew(finished):
    config = copy.deepcopy(RUN)
    for block in config["grid"]:
        block["seeds"] = [1, 2]
    jobs = dry_run(finished, config)
    assert (jobs["finetune"], jobs["split"]) == (4, 2)
    assert not {"pretrain", "pack_cohort", *STEPS} & jobs.keys()


def test_folds_preprocess_nothing_anew(finished):
    config = copy.deepcopy(RUN) | {"splits": {"folds": 2, "validation": 0.15}}
    jobs = dry_run(finished, config)
    # Scratch needs no pack per fold: its folds start from the same weights.
    assert (jobs["split"], jobs["pretrain"], jobs["finetune"], jobs["cell"]) == (8, 2, 6, 20)
    assert not {"pack_cohort", *STEPS} & jobs.keys()


def test_a_changed_method_runs_its_own_cells_only(finished):
    config = copy.deepcopy(RUN)
    config["methods"]["lora"]["r"] = 2
    jobs = dry_run(finished, config)
    assert (jobs["finetune"], jobs["cell"]) == (2, 6)
    assert not {"pretrain", "split", "pack_cohort"} & jobs.keys()


def test_another_figure_fraction_trains_nothing(finished):
    config = copy.deepcopy(RUN)
    config["figures"]["tradeoff_fraction"] = 50
    assert set(dry_run(finished, config)) == {"all", "tables", "figures", "diagnostics", "report"}


def test_another_task_preprocesses_and_retrains_nothing(finished):
    config = copy.deepcopy(RUN)
    config["tasks"]["other"] = {"kind": "regression", "target": "age", "train": "SimB"}
    config["grid"].append(
        {"tasks": ["other"], "backbones": ["vit_xxs"], "methods": ["scratch"], "seeds": [0]}
    )
    jobs = dry_run(finished, config)
    assert (jobs["finetune"], jobs["split"]) == (1, 1)
    assert not {"pretrain", "pack_cohort", *STEPS} & jobs.keys()


def test_a_new_subject_reruns_one_chunk_of_its_cohort(finished):
    config = copy.deepcopy(RUN)
    config["cohorts"]["SimB"]["simulated"]["subjects"] = 5
    jobs = dry_run(finished, config)
    assert jobs["n4_bias_correction"] == 1
    assert "pretrain" not in jobs
    assert "finetune" not in jobs, "a zero-shot cohort that grows retrains nothing"


# -- results that do not count any more ------------------------------------------------------------


@pytest.fixture
def alone(finished, tmp_path):
    """A copy of the results of the finished run, without what Snakemake has noted of it."""
    shutil.copytree(finished / "results", tmp_path / "alone/results")
    return tmp_path / "alone"


def damage(path, how):
    """Cut a file by 500 bytes or flip a bit of it; its time stays."""
    state, content = path.stat(), bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-500]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return bytes(content)


def planned(folder, config, *arguments):
    """Dry-run a `config`; return the jobs, and what is said to be made again."""
    done = snakemake(
        folder, "--configfile", write_config(folder, config), "--cores", "2", "--dry-run", *arguments
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return jobs_in(done.stdout), re.findall(
        r"^Made again, with what depends on it: (.*)", done.stderr + done.stdout, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("name", "how", "makers", "spared"),
    [
        ("cohorts/SimA/store/volumes.npy", "flip", {"pack_cohort": 1}, {"n4_bias_correction"}),
        ("pretraining/mae/vit_xxs/encoder.safetensors", "flip", {"pretrain": 1}, {"pack_cohort"}),
        (f"cells/{LORA}/shots-1/seed-1/delta.safetensors", "cut", {"cell": 1}, {"finetune"}),
        (f"predictions/{LORA}/SimB.tsv", "cut", {"predict": 1}, {"finetune", "cell"}),
        (f"search/{LORA}/trials-0.tsv", "flip", {"trial": 1, "choose": 1, "finetune": 1}, {"pretrain"}),
    ],
)
def test_a_damaged_result_is_named_and_made_again(alone, name, how, makers, spared):
    path = alone / "results" / name
    content = damage(path, how)
    jobs, said = planned(alone, RUN)
    assert makers.items() <= jobs.items()
    assert not spared & jobs.keys()
    assert any(f"results/{name} is damaged" in line for line in said)
    assert path.read_bytes() == content, "a dry run changes nothing"


def test_the_plain_command_makes_a_damaged_delta_again(alone):
    assert planned(alone, RUN) == ({}, []), "copied alone, and nothing has changed"
    delta = alone / f"results/cells/{LORA}/shots-1/seed-1/delta.safetensors"
    whole = delta.read_bytes()
    damage(delta, "flip")
    damage(alone / f"results/_state/cells/{LORA}/shots-1/seed-1/finished/delta.safetensors", "flip")
    path = write_config(alone, RUN)
    done = snakemake(alone, "--configfile", path, "--cores", "2", "--show-failed-logs")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert delta.read_bytes() == whole
    assert planned(alone, RUN) == ({}, [])


def test_without_snakemakes_records_changes_are_noticed(alone):
    config = copy.deepcopy(RUN)
    config["splits"]["test"] = 0.4
    assert planned(alone, config)[0]["split"] == 4
    config = copy.deepcopy(RUN)
    config["methods"]["lora"]["r"] = 2
    jobs, said = planned(alone, config)
    assert (jobs["finetune"], jobs["cell"]) == (2, 6)
    assert any("trained with other settings" in line for line in said)
    assert not {"pretrain", "split", "pack_cohort"} & jobs.keys()
    config = copy.deepcopy(RUN)
    config["cohorts"]["SimB"]["skull_strip"] = "deepbet"
    config["cohorts"]["SimB"].pop("brain_masks", None)
    jobs, _ = planned(alone, config)
    assert (jobs["n4_bias_correction"], jobs["pack_cohort"]) == (1, 1)
    assert not {"pretrain", "finetune"} & jobs.keys()


# -- while it runs ---------------------------------------------------------------------------------


def partial_tables(folder, *arguments):
    """Ask for the tables of what is finished, as one does beside a running workflow."""
    path = write_config(folder, RUN)
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--nolock", *arguments, "tables_partial")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def rows_of(path, delimiter=",", **wanted):
    """Return the rows of a CSV file that have the wanted values."""
    with path.open() as stream:
        return [row for row in csv.DictReader(stream, delimiter=delimiter) if wanted.items() <= row.items()]


@pytest.fixture(scope="module")
def unfinished(finished, tmp_path_factory):
    """A copy of the finished run in which ad by scratch, and half of ad by lora, have not been trained.

    It has its partial tables.
    """
    folder = tmp_path_factory.mktemp("copy") / "unfinished"
    shutil.copytree(finished, folder)
    for cell in (f"{LORA}/shots-1/seed-1", f"{LORA}/fraction-100/seed-1"):
        shutil.rmtree(folder / "results/cells" / cell)
        shutil.rmtree(folder / "results/_state/cells" / cell)
    for group in (LORA, "ad/vit_xxs/none/scratch"):
        shutil.rmtree(folder / "results/predictions" / group)
    for root in ("cells", "_state/cells"):
        shutil.rmtree(folder / "results" / root / "ad/vit_xxs/none/scratch")
    # All of this the workflow itself would do again, and must not do now.
    shutil.rmtree(folder / "results/packs")
    with (folder / "results/cohorts/SimA/chunks/x0/resample.tsv").open("a") as table:
        table.write("\n")  # its time alone would not do: Snakemake compares what small files hold
    jobs = {"parameter_counts_partial": 1, "predict_partial": 2, "tables_partial": 1}
    assert jobs_in(partial_tables(folder, "--dry-run")) == jobs
    partial_tables(folder)
    return folder


def test_partial_tables_are_of_what_is_finished(unfinished):
    tables = unfinished / "results/partial/tables"
    for kind in ("md", "tex"):
        for table in (1, 2, 3, 4):
            assert "PARTIAL: 6 of 10 cells" in (tables / f"table{table}.{kind}").read_text()
    assert {row["partial"] for path in tables.glob("*.csv") for row in rows_of(path)} == {"6 of 10 cells"}
    whole = {path.name for path in (unfinished / "results/tables").glob("*.csv")} - {"parameter_counts.csv"}
    # Those of rule `diagnostics` are of whole runs alone.
    whole -= {
        f"{name}.csv" for name in ("calibration", "subgroups", "age_matched", "brain_age", "brain_age_bins")
    }
    assert {path.name for path in tables.glob("*.csv")} == whole
    wanted = {"task": "ad", "cohort": "SimA", "metric": "auc"}
    (half,) = rows_of(tables / "scores.csv", **wanted, method="lora", subset="shots-1")
    assert (half["seeds"], half["seeds_expected"], half["reason"]) == ("1", "2", "no predictions of seed 1")
    (scratch,) = rows_of(tables / "scores.csv", **wanted, method="scratch")
    assert (scratch["mean"], scratch["seeds"]) == ("n/a", "0")
    (ridge,) = rows_of(tables / "scores.csv", **wanted, method="ridge_voxels", subset="fraction-100")
    assert ridge["seeds"] == "2"
    # what is complete has the same scores as in the full tables
    for row in rows_of(unfinished / "results/tables/scores.csv", task="age", method="lora"):
        key = {column: row[column] for column in ("cohort", "metric", "mean", "seed_values")}
        assert rows_of(tables / "scores.csv", task="age", method="lora", **key)
    states = [row["status"] for row in rows_of(tables / "costs.csv")]
    assert (states.count("done"), states.count("missing")) == (6, 4)
    assert not (unfinished / "results/predictions" / LORA).exists()

    assert "Nothing to be done" in partial_tables(unfinished)


def test_partial_tables_are_renewed_when_more_is_finished(unfinished, finished, tmp_path):
    folder, cell = tmp_path / "more", f"_state/cells/{LORA}/shots-1/seed-1"
    shutil.copytree(unfinished, folder)
    shutil.copytree(finished / "results" / cell, folder / "results" / cell)
    partial_tables(folder)
    tables = folder / "results/partial/tables"
    assert "PARTIAL: 7 of 10 cells" in (tables / "table3.md").read_text()
    wanted = {"task": "ad", "cohort": "SimA", "metric": "auc", "method": "lora", "subset": "shots-1"}
    (partial,), (full,) = (
        rows_of(path, **wanted) for path in (tables / "scores.csv", finished / "results/tables/scores.csv")
    )
    assert partial["seeds"] == "2"
    assert partial["mean"] == full["mean"]


def test_partial_tables_of_a_run_that_has_not_begun(tmp_path):
    partial_tables(tmp_path)
    assert "PARTIAL: 0 of 10 cells" in (tmp_path / "results/partial/tables/table3.md").read_text()


def test_status_is_a_rule_too(finished):
    path = write_config(finished, RUN)
    done = snakemake(finished, "--configfile", path, "--cores", "1", "--nolock", "status")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^all +10 +0 +0 +0 +10 ", done.stdout, flags=re.MULTILINE)
