"""Stages run again when code changes that their result depends on, and for nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from snakemake.jobs import Job

import planned
from neuropeft import numerics
from workflow_command import ROOT


def names(*modules: str) -> set[str]:
    return {str(path.relative_to(numerics.PACKAGE)) for path in numerics.dependencies(*modules)}


def test_a_stage_depends_on_what_it_imports_and_on_what_that_imports():
    found = names("train.finetune")
    assert {
        "train/finetune.py",
        "methods/adapt.py",
        "backbones/heads.py",
        "store.py",
        "tasks/base.py",
    } <= found


def test_a_stage_does_not_depend_on_verbs_figures_or_preprocessing():
    found = names("train.pack", "train.search")
    assert not {"cli.py", "config/root.py", "grid.py"} & found, "another setting is no reason to train anew"
    assert not any(name.startswith(("publish/", "inputs/", "evaluate/")) for name in found)


def test_a_package_is_its_init_file():
    assert names("cohorts") == {"cohorts/__init__.py"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    return planned.jobs(tmp_path_factory.mktemp("planned"), "--configfile", ROOT / "tests/tiny.yaml")


def versions(jobs: list[Job]) -> dict[Job, str]:
    """Return the version of the code of each job that has one."""
    return {
        job: code(job.wildcards)
        for job in jobs
        if (code := dict(job.rule.params.items()).get("code")) is not None
    }


@contextmanager
def edited(module: str, *change: str) -> Iterator[None]:
    """Have the text of a module changed: `change` is appended, or its first text replaced by its second."""
    path = numerics.PACKAGE / module
    text = path.read_text()
    assert len(change) == 1 or change[0] in text
    new = text.replace(*change) if len(change) == 2 else text + change[0]
    plain = numerics._text.__wrapped__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "_text", lambda other: new if other == path else plain(other))
        numerics.version.cache_clear()
        yield
    numerics.version.cache_clear()


CHANGED: dict[str, set[str]] = {
    "cli.py": set(),
    "cohorts/phantom.py": {"simulate_scans", "simulate_tables"},
    "inputs/t1w/n4.py": {"n4_bias_correction"},
    "inputs/t1w/skullstrip.py": {"skull_strip"},
    "inputs/t1w/register.py": {"register_to_template"},
    "inputs/t1w/resample.py": {"resample_to_template", "pack_cohort", "qc"},
    "inputs/t1w/kind.py": {"pack_cohort", "qc"},
    "inputs/image.py": set(),  # of a kind that no cohort has
    "inputs/volume.py": set(),
    "inputs/store.py": {"list_excluded", "pack_cohort"},
    "inputs/qc.py": {"qc"},
    "cohorts/leaks.py": {"check_leaks", "check_pretraining"},
    "backbones/vit.py": {"pretrain", "finetune", "predict", "features", "parameter_counts"},
    "backbones/densenet121.py": {"parameter_counts"},  # of a kind that this configuration does not train
    "methods/lora.py": {"finetune", "predict", "parameter_counts"},
    "methods/adapters.py": {"parameter_counts"},  # of methods that this configuration does not train
    "train/pretrain.py": {"pretrain"},
    "pretraining/mae.py": {"pretrain"},
    "pretraining/mae3d.py": {"pretrain"},
    "pretraining/base.py": {"pretrain"},
    "pretraining/factors.py": set(),  # of a kind that this configuration does not pretrain
    "pretraining/imported.py": set(),
    "train/loop.py": {"pretrain", "finetune", "predict"},
    "train/diagnose.py": {"pretrain"},
    "train/pack.py": {"finetune"},
    "train/augment.py": {"pretrain", "finetune", "predict"},
    "train/predict.py": {"predict"},
    "train/features.py": {"features"},
    "evaluate/controls.py": {"controls"},
    "evaluate/probes.py": {"probes"},
    "evaluate/confounds.py": {"confounds", "tables", "report"},
    "tasks/multilabel.py": set(),  # of a kind that no task of this configuration has
    "tasks/linear.py": {"controls", "probes", "finetune", "predict"},
    "evaluate/bootstrap.py": {"score", "confounds", "tables", "figures", "diagnostics", "report"},
    "evaluate/compare.py": {"tables", "figures", "diagnostics", "report"},
    "evaluate/across.py": {"tables", "figures"},
    "evaluate/learning.py": {"tables"},
    "publish/comparison_table.py": {"tables"},
    "evaluate/calibration.py": {"diagnostics"},
    "evaluate/people.py": {"diagnostics"},
    "publish/curves.py": {"figures"},
    "publish/score_tables.py": {"tables"},
    "publish/labels.py": {"tables", "figures", "diagnostics", "report"},
    "publish/report/page.py": {"report"},
}


@pytest.mark.parametrize("module", CHANGED)
def test_a_changed_module_runs_what_depends_on_it_again_and_nothing_else(
    jobs: list[Job], module: str
) -> None:
    before = versions(jobs)
    with edited(module, "\nCHANGED = 1\n"):
        after = versions(jobs)
    assert {job.rule.name for job in jobs if before.get(job) != after.get(job)} == CHANGED[module]


@pytest.mark.parametrize(
    ("module", "change"),
    [
        ("errors.py", ("\nclass UserError", "\nMORE = 1\n\n\nclass UserError")),
        ("layout.py", ("\nSTORE", "\nMORE = 1\nSTORE")),
        ("progress.py", ("import", "import math\nimport")),
        ("train/signals.py", ("import", "import math\nimport")),
        ("train/loop.py", ("is not finite at step", "is infinite at step")),
        ("train/loop.py", ('"""Train `learner`, going on', '"""Trains `learner`, going on')),
        ("inputs/__init__.py", ('"t1w": ', '"pet": "inputs.pet", "t1w": ')),
        ("methods/__init__.py", ('"bitfit": ', '"vera": "methods.vera", "bitfit": ')),
        ("pretraining/__init__.py", ('"mae": ', '"dino": "pretraining.dino", "mae": ')),
        ("tasks/__init__.py", ('"multilabel": ', '"survival": "survival.Survival", "multilabel": ')),
        ("tasks/classification.py", ("no training scan has class", "not one training scan has class")),
    ],
)
def test_words_and_new_names_run_nothing_again(jobs: list[Job], module: str, change: tuple[str, str]) -> None:
    before = versions(jobs)
    with edited(module, *change):
        assert versions(jobs) == before


def test_a_changed_loss_trains_its_kind_of_task_again_and_no_other(jobs: list[Job]) -> None:
    before = versions(jobs)
    with edited("tasks/regression.py", "- median) / sd", "- median) / (2 * sd)"):
        after = versions(jobs)
    trained = {
        job.wildcards.task for job in jobs if job.rule.name == "finetune" and before[job] != after[job]
    }
    assert trained == {"age"}
