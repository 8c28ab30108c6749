"""Rules depend on the modules that their result depends on, and on no others."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from snakemake.jobs import Job

import planned
from neuropeft.sources import PACKAGE, sources
from workflow_command import ROOT


def _names(*modules):
    return _in_package(sources(*modules))


def _in_package(files: Iterable[str]) -> set[str]:
    return {str(Path(file).relative_to(PACKAGE)) for file in files if Path(file).is_relative_to(PACKAGE)}


def test_a_stage_depends_on_what_it_imports_and_on_what_that_imports():
    names = _names("train.finetune")
    assert {"train/finetune.py", "methods/adapt.py", "backbones/heads.py", "store.py", "errors.py"} <= names


def test_a_stage_does_not_depend_on_verbs_figures_or_preprocessing():
    names = _names("train.pack", "train.search")
    assert not {"cli.py", "grid.py"} & names
    assert not any(name.startswith("config/") for name in names), "another setting is no reason to train anew"
    assert not any(name.startswith(("publish/", "preprocess/", "evaluate/")) for name in names)


def test_a_package_is_its_init_file():
    assert _names("cohorts") == {"cohorts/__init__.py"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    return planned.jobs(tmp_path_factory.mktemp("planned"), "--configfile", ROOT / "tests/tiny.yaml")


CHANGED: dict[str, set[str]] = {
    "cli.py": set(),
    "cohorts/phantom.py": {"simulate_scans", "simulate_tables"},
    "preprocess/n4.py": {"n4_bias_correction"},
    "preprocess/skullstrip.py": {"skull_strip"},
    "preprocess/register.py": {"register_to_template"},
    "preprocess/resample.py": {"resample_to_template", "list_excluded", "pack_cohort", "qc"},
    "preprocess/qc.py": {"qc"},
    "cohorts/leaks.py": {"check_leaks", "check_pretraining"},
    "backbones/vit.py": {"pretrain", "finetune", "predict", "features", "parameter_counts"},
    "backbones/densenet121.py": {"parameter_counts"},  # of a kind that this configuration does not train
    "backbones/__init__.py": set(),  # another kind changes no result of those that there are
    "methods/__init__.py": set(),
    "methods/lora.py": {"finetune", "predict", "parameter_counts"},
    "train/pretrain.py": {"pretrain"},
    "train/mae.py": {"pretrain"},
    "train/factors.py": set(),  # of a kind that this configuration does not pretrain
    "train/pack.py": {"finetune"},
    "train/augment.py": {"pretrain", "finetune", "predict"},
    "train/predict.py": {"predict"},
    "train/features.py": {"features"},
    "evaluate/controls.py": {"controls"},
    "evaluate/probes.py": {"probes"},
    "linear.py": {"controls", "probes", "finetune", "predict"},
    "evaluate/metrics.py": {"tables", "figures"},
    "publish/score_tables.py": {"tables"},
    "publish/labels.py": {"tables", "figures"},
}


@pytest.mark.parametrize("module", CHANGED)
def test_a_changed_module_runs_what_depends_on_it_again_and_nothing_else(
    jobs: list[Job], module: str
) -> None:
    assert {job.rule.name for job in jobs if module in _in_package(job.input)} == CHANGED[module]
