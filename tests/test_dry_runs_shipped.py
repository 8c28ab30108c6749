"""The configurations that come with the benchmark, dry-run, and with mistakes in them."""

import copy
import os
import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml

from neuropeft.config.read import load_config, read_yaml
from workflow_command import (
    ROOT,
    TINY,
    dry_run,
    empty_cohort,
    jobs_in,
    shown,
    skull_stripping,
    snakemake,
    write_config,
)


@pytest.fixture
def paper(tmp_path):
    """The paper's configuration over cohorts of empty scans."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    for name, cohort in config["cohorts"].items():
        cohort["bids"] = empty_cohort(tmp_path / "data" / name, 60)
    return config


def test_the_papers_benchmark_dry_runs(tmp_path, paper):
    jobs = dry_run(tmp_path, paper)
    assert jobs["cell"] == 3 * 7 * 3 + 4 * 6 * 3 + 5 * 5 * 3
    assert jobs["finetune"] == 3 * 7 + 5  # no method has more cells of a task and a backbone than a job takes
    assert jobs["pretrain"] == 2
    assert jobs["pack_cohort"] == 5
    assert jobs["controls"] == 9
    # ViT-B and ViT-S from mae and untrained and DenseNet121 untrained, on the tasks' cohorts
    assert jobs["features"] == 3 * 4 + 2 * 2
    assert jobs["probes"] == (3 * 3 + 2) * 3
    # one prediction per (task, backbone, method) and cohort, whatever the fractions and seeds
    assert jobs["predict"] == (3 * 7 + 5) * 2
    # their scores, those of the probes of each backbone and start, and of the controls of each task
    assert jobs["score"] == 3 * 7 + 5 + (3 * 3 + 2) + 3


def test_the_demo_dry_runs(tmp_path):
    jobs = dry_run(tmp_path, yaml.safe_load((ROOT / "workflow/configs/demo.yaml").read_text()))
    assert jobs["simulate_scans"] == jobs["n4_bias_correction"] > 2


def test_the_ixi_run_dry_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("IXI_ROOT", empty_cohort(tmp_path / "ixi", 40))
    monkeypatch.setenv("DS002748_ROOT", empty_cohort(tmp_path / "ds", 12))
    said = shown(tmp_path, yaml.safe_load((ROOT / "workflow/configs/ixi.yaml").read_text()))
    assert jobs_in(said)["pretrain"] == 2 + 2 * 5, "two on synthetic brains, and two on IXI in each fold"
    assert skull_stripping(said) == {"IXI": "deepbet", "ds002748": "stripped"}


def images_table(path, suffix, **columns):
    """Make a table of empty images; the values of each column alternate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = "," if path.suffix == ".csv" else "\t"
    lines = [mark.join(["path", "subject", *columns])]
    for number in range(300):
        (path.parent / f"{number}{suffix}").touch()
        values = (str(values[number % len(values)]) for values in columns.values())
        lines.append(mark.join([f"{number}{suffix}", f"s{number}", *values]))
    path.write_text("\n".join(lines) + "\n")


PAPERS = {
    **{"lian2024": ["lian2024"], "dutt2023": ["methods", "dutt2023"], "open2d": ["open2d"]},
    **{name: [name] for name in ("medtuning_brats", "medtuning_kits", "segment2d", "dutt2023_generation")},
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_configurations_of_other_papers_dry_run(tmp_path, monkeypatch, name):
    """One seed and two methods of each block: every task, cohort, backbone and start."""
    *first, last = (read_yaml(ROOT / f"workflow/configs/{part}.yaml") for part in PAPERS[name])
    config = {**last, "methods": {**(first[0]["methods"] if first else {}), **last["methods"]}}
    for block in config["grid"]:
        block |= {"seeds": [0], "methods": block["methods"][:2]}
    for variable in re.findall(r"\$(\w+)", yaml.safe_dump(config)):
        monkeypatch.setenv(variable, str(tmp_path / "data" / variable))
    read = load_config(config, None)
    tasks = read.tasks.values()
    named = [start["weights"] for start in config["pretraining"].values()]
    for file in [*named, *(scorer for task in tasks for scorer in task.scorers)]:
        weights = Path(os.path.expandvars(file))
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.touch()
    for task in tasks:
        classes = [value for values in getattr(task, "classes", {}).values() for value in as_list(values)]
        columns = dict.fromkeys(task.target_columns.values(), classes or [1, 0]) | task.filters()
        cohort = read.cohorts[task.train]
        if (mask := cohort.input.mask_column) and task.kind == "segmentation":
            columns[mask] = ["mask"]
        table = Path(os.path.expandvars(cohort.table))
        images_table(table, ".png" if cohort.input.dims == 2 else ".nii.gz", **columns)
    jobs = dry_run(tmp_path, config)
    assert jobs["import_encoder"] == len(config["pretraining"])
    assert jobs["split"] == len(config["tasks"])
    segments = [task for task in tasks if task.kind == "segmentation"]
    assert jobs.get("mean_label_map", 0) == len(segments)
    assert jobs.get("controls", 0) == len(tasks) - len(segments)


def as_list(value):
    return value if isinstance(value, list) else [value]


def refusal(folder, path):
    """Dry-run the configuration in a file, which must be refused; return what is said."""
    done = snakemake(folder, "--configfile", path, "--cores", "2", "--dry-run")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "UserError" not in said, "the mistake is the user's, not one of a file of ours"
    return said


def test_mistakes_stop_the_dry_run_in_a_sentence(tmp_path, paper):
    pd = {"CN": "CN", "PD": "Parkinson"}
    for (*place, key), value, *words in (
        (("tasks", "ad", "target"), "diagnosys", "tasks.ad.target"),
        (("tasks", "pd", "classes"), pd, "tasks.pd.classes", "Parkinson"),
        (("cohorts", "OASIS", "bids"), "no/such/folder", "cohorts.OASIS.bids"),
        (("trainning",), {}, "unknown key `trainning`: did you mean 'training'?"),
    ):
        wrong = copy.deepcopy(paper)
        reduce(getitem, place, wrong)[key] = value
        said = refusal(tmp_path, write_config(tmp_path, wrong))
        assert all(one in said for one in words), said
    twice = write_config(tmp_path, TINY)
    twice.write_text(twice.read_text() + "\ntraining: {epochs: 30}\n")
    assert "the key 'training' is given twice" in refusal(tmp_path, twice)
