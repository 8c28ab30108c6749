"""The workflow as users run it: linted, dry-run in many configurations, and once end to end."""

import copy
import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import workflow_command
from neuropeft import grid
from neuropeft.configfile import load_config
from neuropeft.models.build import build_vit
from neuropeft.models.checkpoints import load_encoder, save_encoder

ROOT = Path(__file__).parents[1]
TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
STEPS = ("n4_bias_correction", "skull_strip", "register_to_template", "resample_to_template")


def snakemake(folder, *arguments):
    """Run Snakemake with `folder` as its working directory; return the finished process."""
    command = workflow_command.snakemake(folder, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def dry_run(folder, config, *arguments):
    """Dry-run `config`; return the number of jobs of each rule, empty when there is nothing to do."""
    path = folder / "config-under-test.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--dry-run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in table if rule != "total"}


def failure(folder, config):
    """Dry-run a `config` that must be refused; return what is said."""
    path = folder / "config-under-test.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--dry-run")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return said


def bids_cohort(root, subjects, columns=("participant_id", "age", "sex", "diagnosis")):
    """Make a BIDS tree of empty scans whose diagnoses alternate and whose ages grow."""
    root.mkdir(parents=True)
    lines = ["\t".join(columns)]
    for number in range(subjects):
        name = f"sub-{number:03}"
        (root / name / "anat").mkdir(parents=True)
        (root / name / "anat" / f"{name}_T1w.nii.gz").touch()
        values = {
            "participant_id": name,
            "age": str(50 + number),
            "sex": "FM"[number % 2],
            "diagnosis": ("CN", "AD", "PD")[number // 2 % 3],
        }
        lines.append("\t".join(values[column] for column in columns))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    return str(root)


@pytest.fixture
def paper(tmp_path):
    """The paper's configuration over cohorts of empty scans."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    for name, cohort in config["cohorts"].items():
        cohort["bids"] = bids_cohort(tmp_path / "data" / name, 60)
    return config


def test_lint_is_clean(tmp_path):
    done = snakemake(tmp_path, "--lint", "--configfile", ROOT / "workflow/configs/demo.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


# -- dry runs --------------------------------------------------------------------------------------


def test_the_papers_benchmark_dry_runs(tmp_path, paper):
    jobs = dry_run(tmp_path, paper)
    assert jobs["cell"] == 3 * 6 * 3 + 4 * 6 * 3 + 5 * 5 * 3
    assert jobs["finetune"] == 3 * 6 + 5  # no method has more cells of a task and a backbone than a job takes
    assert jobs["pretrain"] == 2
    assert jobs["pack_cohort"] == 5
    assert jobs["controls"] == 9
    # one prediction per (task, backbone, method) and cohort, whatever the fractions and seeds
    assert jobs["predict"] == (3 * 6 + 5) * 2


def test_the_demo_dry_runs(tmp_path):
    jobs = dry_run(tmp_path, yaml.safe_load((ROOT / "workflow/configs/demo.yaml").read_text()))
    assert jobs["simulate_scans"] == jobs["n4_bias_correction"] > 2


def test_the_ixi_run_dry_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("IXI_ROOT", bids_cohort(tmp_path / "ixi", 40))
    monkeypatch.setenv("DS002748_ROOT", bids_cohort(tmp_path / "ds", 12))
    jobs = dry_run(tmp_path, yaml.safe_load((ROOT / "workflow/configs/ixi.yaml").read_text()))
    assert jobs["pretrain"] == 1


def test_a_configfile_replaces_config_yaml_whole(tmp_path):
    jobs = dry_run(tmp_path, TINY)  # merged with config.yaml it would ask for UKB
    assert jobs["cell"] == 10
    assert jobs["finetune"] == 4  # ad and age by scratch and lora
    assert jobs["qc"] == 2


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_dry_run(tmp_path, profile):
    jobs = dry_run(tmp_path, TINY, "--profile", ROOT / "profiles" / profile)
    assert jobs["cell"] == 10


def test_one_scan_per_job(tmp_path):
    config = copy.deepcopy(TINY)
    config["preprocessing"]["scans_per_job"] = 1
    jobs = dry_run(tmp_path, config)
    assert [jobs[step] for step in STEPS] == [20] * 4


def test_weights_from_elsewhere_are_imported_instead_of_trained(tmp_path):
    encoder = build_vit(grid.backbone_spec(load_config(TINY, ROOT), "vit_xxs"))
    save_encoder(tmp_path / "theirs.safetensors", encoder, {})
    config = copy.deepcopy(TINY)
    config["pretraining"] = {"mae": {"weights": str(tmp_path / "theirs.safetensors")}}
    jobs = dry_run(tmp_path, config)
    assert jobs["import_encoder"] == 1
    assert jobs["cell"] == 10
    assert "pretrain" not in jobs
    path, imported = (
        tmp_path / "config-under-test.yaml",
        "results/pretraining/mae/vit_xxs/encoder.safetensors",
    )
    done = snakemake(tmp_path, "--configfile", path, "--cores", "1", imported)
    assert done.returncode == 0, done.stdout + done.stderr
    load_encoder(tmp_path / imported, encoder)


def test_only_cohorts_and_pretraining_in_use_are_processed(tmp_path):
    config = copy.deepcopy(TINY)
    config["grid"] = [
        {"tasks": ["age"], "backbones": ["vit_xxs"], "methods": ["scratch"], "seeds": [0]},
    ]
    config["tasks"]["age"]["zero_shot"] = []
    jobs = dry_run(tmp_path, config)
    assert "pretrain" not in jobs
    assert (jobs["pack_cohort"], jobs["finetune"], jobs["predict"]) == (1, 1, 1)


def test_a_table_and_a_multiclass_task(tmp_path):
    rows = ["path,subject,session,label"]
    for number in range(30):
        scan = tmp_path / "scans" / f"{number}.nii"
        scan.parent.mkdir(exist_ok=True)
        scan.touch()
        rows.append(f"{scan},P{number // 2},{number % 2},{'abc'[number // 2 % 3]}")
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    config = copy.deepcopy(TINY)
    config["cohorts"] = {"Local": {"table": str(tmp_path / "scans.csv")}}
    config["tasks"] = {
        "abc": {
            "kind": "multiclass",
            "target": "label",
            "classes": {"first": "a", "second": "b", "third": "c"},
            "train": "Local",
        }
    }
    config["pretraining"]["mae"]["cohort"] = "Local"
    config["grid"] = [
        {
            "tasks": ["abc"],
            "backbones": ["vit_xxs"],
            "methods": ["lora"],
            "pretraining": ["mae"],
            "seeds": [0],
        }
    ]
    assert dry_run(tmp_path, config)["finetune"] == 1


def test_mistakes_stop_the_dry_run_in_a_sentence(tmp_path, paper):
    absent = copy.deepcopy(paper)
    absent["tasks"]["ad"]["target"] = "diagnosys"
    assert "tasks.ad.target" in failure(tmp_path, absent)

    wrong_class = copy.deepcopy(paper)
    wrong_class["tasks"]["pd"]["classes"] = {"CN": "CN", "PD": "Parkinson"}
    said = failure(tmp_path, wrong_class)
    assert "tasks.pd.classes" in said
    assert "Parkinson" in said

    no_path = copy.deepcopy(paper)
    no_path["cohorts"]["OASIS"]["bids"] = "no/such/folder"
    assert "cohorts.OASIS.bids" in failure(tmp_path, no_path)

    unknown = copy.deepcopy(paper)
    unknown["trainning"] = {}
    assert "unknown key `trainning`: did you mean 'training'?" in failure(tmp_path, unknown)


# -- end to end ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of tiny.yaml."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "config-under-test.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
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
    for name in ("table1", "table2", "table3", "table4"):
        for kind in ("csv", "md", "tex"):
            assert (finished / f"results/tables/{name}.{kind}").stat().st_size > 0
    for name in ("figure1", "figure2", "figure3", "losses_pretraining", "losses_finetuning"):
        for kind in ("png", "svg", "pdf"):
            assert (finished / f"results/figures/{name}.{kind}").stat().st_size > 0
    assert (finished / "results/qc/SimA/index.html").exists()
    assert "simulated" in (finished / "results/tables/table3.md").read_text()
    cost = json.loads(
        (finished / "results/cells/ad/vit_xxs/mae/lora/fraction-50/seed-1/cost.json").read_text()
    )
    assert cost["trainable"] > 0


def test_test_subjects_are_kept_from_training_and_pretraining(finished):
    splits = finished / "results/splits/ad"
    sides = []
    for seed in (0, 1):
        with (splits / f"seed-{seed}.tsv").open() as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        sides.append({row["subject"] for row in rows if row["side"] == "test"})
    assert sides[0] == sides[1] != set()
    cost = json.loads((finished / "results/pretraining/mae/vit_xxs/cost.json").read_text())
    assert cost["train_scans"] + cost["validation_scans"] <= 14 - len(sides[0])
    for cohort, side, number in (("SimA", "test", len(sides[0])), ("SimB", "zero-shot", 6)):
        with (splits / f"leaks/pretraining-mae/{cohort}.tsv").open() as stream:
            rows = {row["side"]: int(row["scans"]) for row in csv.DictReader(stream, delimiter="\t")}
        assert rows == {side: number, "pretraining": cost["train_scans"] + cost["validation_scans"]}


def test_a_second_run_does_nothing(finished):
    assert dry_run(finished, TINY) == {}


def test_a_longer_seed_list_runs_its_new_cells_only(finished):
    config = copy.deepcopy(TINY)
    config["grid"][1]["seeds"] = [0, 1, 2]
    jobs = dry_run(finished, config)
    # fractions 50 and 100 of seed 2 join the pack of ad by lora, which is predicted anew
    assert (jobs["finetune"], jobs["cell"], jobs["predict"]) == (1, 6, 2)
    assert jobs["split"] == 1
    assert not {"pretrain", "pack_cohort", *STEPS} & jobs.keys()


def test_a_changed_method_runs_its_own_cells_only(finished):
    config = copy.deepcopy(TINY)
    config["methods"]["lora"]["r"] = 2
    jobs = dry_run(finished, config)
    assert (jobs["finetune"], jobs["cell"]) == (2, 6)
    assert not {"pretrain", "split", "pack_cohort"} & jobs.keys()


def test_another_figure_fraction_trains_nothing(finished):
    config = copy.deepcopy(TINY)
    config["figures"]["tradeoff_fraction"] = 50
    assert set(dry_run(finished, config)) == {"all", "tables", "figures"}


def test_another_task_preprocesses_and_retrains_nothing(finished):
    config = copy.deepcopy(TINY)
    config["tasks"]["sex"] = {
        "kind": "binary",
        "target": "sex",
        "classes": {"male": "M", "female": "F"},
        "train": "SimB",
    }
    config["grid"].append({"tasks": ["sex"], "backbones": ["vit_xxs"], "methods": ["scratch"], "seeds": [0]})
    jobs = dry_run(finished, config)
    assert (jobs["finetune"], jobs["split"]) == (1, 1)
    assert not {"pretrain", "pack_cohort", *STEPS} & jobs.keys()


def test_a_new_subject_reruns_one_chunk_of_its_cohort(finished):
    config = copy.deepcopy(TINY)
    config["cohorts"]["SimB"]["simulated"]["subjects"] = 7
    jobs = dry_run(finished, config)
    assert jobs["n4_bias_correction"] == 1
    assert "pretrain" not in jobs
    assert "finetune" not in jobs, "a zero-shot cohort that grows retrains nothing"


# -- while it runs ---------------------------------------------------------------------------------

LORA = "ad/vit_xxs/mae/lora"


def partial_tables(folder, *arguments):
    """Ask for the tables of what is finished, as one does beside a running workflow."""
    path = folder / "config-under-test.yaml"
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--nolock", *arguments, "tables_partial")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def rows_of(path, **wanted):
    """Return the rows of a CSV file that have the wanted values."""
    with path.open() as stream:
        return [row for row in csv.DictReader(stream) if wanted.items() <= row.items()]


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run in which ad by scratch, and half of ad by lora, have not been trained."""
    folder = tmp_path / "unfinished"
    shutil.copytree(finished, folder)
    for cell in (f"{LORA}/fraction-50/seed-1", f"{LORA}/fraction-100/seed-1"):
        shutil.rmtree(folder / "results/cells" / cell)
        shutil.rmtree(folder / "results/_state/cells" / cell)
    for group in (LORA, "ad/vit_xxs/none/scratch"):
        shutil.rmtree(folder / "results/predictions" / group)
    for root in ("cells", "_state/cells"):
        shutil.rmtree(folder / "results" / root / "ad/vit_xxs/none/scratch")
    # All of this the workflow itself would do again, and must not do now.
    shutil.rmtree(folder / "results/packs")
    (folder / "results/cohorts/SimA/chunks/x0/resample.tsv").touch()
    return folder


def test_partial_tables_are_of_what_is_finished(unfinished):
    shown = re.findall(r"^(\w+) +(\d+)$", partial_tables(unfinished, "--dry-run"), flags=re.MULTILINE)
    jobs = {"parameter_counts_partial": 1, "predict_partial": 2, "tables_partial": 1}
    assert {rule: int(count) for rule, count in shown if rule != "total"} == jobs

    partial_tables(unfinished)
    tables = unfinished / "results/partial/tables"
    for kind in ("md", "tex"):
        for table in (1, 2, 3, 4):
            assert "PARTIAL: 6 of 10 cells" in (tables / f"table{table}.{kind}").read_text()
    assert {row["partial"] for path in tables.glob("*.csv") for row in rows_of(path)} == {"6 of 10 cells"}
    assert len(list(tables.glob("*.csv"))) == 6
    wanted = {"task": "ad", "cohort": "SimA", "metric": "auc"}
    (half,) = rows_of(tables / "scores.csv", **wanted, method="lora", fraction="50")
    assert (half["seeds"], half["seeds_expected"], half["reason"]) == ("1", "2", "no predictions of seed 1")
    (scratch,) = rows_of(tables / "scores.csv", **wanted, method="scratch")
    assert (scratch["mean"], scratch["seeds"]) == ("n/a", "0")
    (ridge,) = rows_of(tables / "scores.csv", **wanted, method="ridge_voxels")
    assert ridge["seeds"] == "2"
    # what is complete has the same scores as in the full tables
    for row in rows_of(unfinished / "results/tables/scores.csv", task="age", method="lora"):
        key = {column: row[column] for column in ("cohort", "metric", "mean", "seed_values")}
        assert rows_of(tables / "scores.csv", task="age", method="lora", **key)
    states = [row["status"] for row in rows_of(tables / "costs.csv")]
    assert (states.count("done"), states.count("missing")) == (6, 4)
    assert not (unfinished / "results/predictions" / LORA).exists()

    assert "Nothing to be done" in partial_tables(unfinished)


def test_partial_tables_are_renewed_when_more_is_finished(unfinished, finished):
    partial_tables(unfinished)
    cell = f"_state/cells/{LORA}/fraction-50/seed-1"
    shutil.copytree(finished / "results" / cell, unfinished / "results" / cell)
    partial_tables(unfinished)
    tables = unfinished / "results/partial/tables"
    assert "PARTIAL: 7 of 10 cells" in (tables / "table3.md").read_text()
    wanted = {"task": "ad", "cohort": "SimA", "metric": "auc", "method": "lora", "fraction": "50"}
    (partial,), (full,) = (
        rows_of(path, **wanted) for path in (tables / "scores.csv", finished / "results/tables/scores.csv")
    )
    assert partial["seeds"] == "2"
    assert partial["mean"] == full["mean"]


def test_partial_tables_of_a_run_that_has_not_begun(tmp_path):
    (tmp_path / "config-under-test.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    partial_tables(tmp_path)
    assert "PARTIAL: 0 of 10 cells" in (tmp_path / "results/partial/tables/table3.md").read_text()


def test_status_is_a_rule_too(finished):
    path = finished / "config-under-test.yaml"
    done = snakemake(finished, "--configfile", path, "--cores", "1", "--nolock", "status")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^all +10 +0 +0 +0 +10 ", done.stdout, flags=re.MULTILINE)


def test_status_and_partial_tables_leave_the_index_of_a_running_workflow_alone(finished, tmp_path):
    folder = tmp_path / "running"
    shutil.copytree(finished, folder)
    index = folder / "results/cohorts/SimB/scans.tsv"
    before = index.read_text()
    config = copy.deepcopy(TINY)
    config["cohorts"]["SimB"]["simulated"]["subjects"] = 9
    path = folder / "config-under-test.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    for target in ("status", "tables_partial"):
        done = snakemake(folder, "--configfile", path, "--cores", "1", "--nolock", "--dry-run", target)
        assert done.returncode == 0, done.stderr
        assert index.read_text() == before
    assert snakemake(folder, "--configfile", path, "--cores", "1", "--dry-run").returncode == 0
    assert index.read_text() != before
