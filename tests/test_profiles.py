"""What Snakemake understands of the two profiles, also after the edits that they tell of."""

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import yaml

import planned
from neuropeft import estimates
from workflow_command import ROOT, TINY, write_config

pytestmark = pytest.mark.filterwarnings("ignore:coroutine")  # Snakemake's own, of disk_mb
PROFILES = ROOT / "profiles"
FILE = "config.v8+.yaml"
GPU_RULES = {
    *("pretrain", "finetune", "trial", "predict", "predict_partial", "features"),
    *("describe", "vary", "saliency"),
}


def edited(folder: Path, pattern: str, replacement: str) -> tuple[Path, int]:
    """Write SLURM's profile with all matches replaced; return where, and how many there were."""
    text, number = re.subn(pattern, replacement, (PROFILES / "slurm" / FILE).read_text(), flags=re.MULTILINE)
    shutil.copytree(PROFILES / "slurm", folder / "mine")
    (folder / "mine" / FILE).write_text(text)
    return folder / "mine", number


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_a_run_goes_on_after_failures_and_keeps_others_out(profile: str) -> None:
    _, given = planned.options("--profile", PROFILES / profile)
    assert given.keep_going
    assert given.rerun_incomplete, "or what a killed run was writing stops the next run"
    assert not given.nolock
    assert given.scheduler == "greedy"
    assert given.show_failed_logs


def test_a_cluster_is_waited_for_and_spared() -> None:
    _, given = planned.options("--profile", PROFILES / "slurm")
    assert given.executor == "slurm"
    assert given.slurm_requeue is True, (
        "where SLURM's own setting is another, a preempted job would not come back"
    )
    assert given.retries >= 1
    assert given.latency_wait >= 30
    assert given.scheduler_subsample
    assert "gpu" not in given.resources, "a limit would cut what a pretraining on several GPUs asks for"


def test_three_edits_are_enough(tmp_path: Path) -> None:
    profile, edits = edited(tmp_path, r'^  - (\w+) = "\w+" +# EDIT: ', r'  - \1 = "my-\1"  # ')
    assert edits == 3
    _, given = planned.options("--profile", profile)
    asked = [given.default_resources, *given.set_resources.values()]
    assert {of_rule["slurm_partition"].raw for of_rule in asked} == {"my-cpu", "my-gpu"}
    assert given.default_resources["slurm_account"].raw == "my-account"
    assert given.default_resources["slurm_partition"].raw == "my-cpu"
    wants_gpu = {
        rule for rule, of_rule in given.set_resources.items() if of_rule["slurm_partition"].raw == "my-gpu"
    }
    workflow = planned.read(tmp_path, "--configfile", write_config(tmp_path, TINY))
    assert {rule.name for rule in workflow.rules if "gpu" in rule.resources} == wants_gpu == GPU_RULES


def test_the_profiles_line_for_several_nodes_gives_each_a_process_for_each_gpu(tmp_path: Path) -> None:
    text = (PROFILES / "slurm" / FILE).read_text()
    line = yaml.safe_load(re.search(r"# (\{mpi: .*\})", text)[1])
    instead = "".join(f"    {key}: {value}\n" for key, value in line.items())
    profile, edits = edited(tmp_path, r"^    gpu: 1 +# GPUs on the node.*\n    nodes: 1.*\n", instead)
    assert edits == 1
    target = "results/pretraining/mae/vit_xxs/encoder.safetensors"
    arguments = ("--configfile", write_config(tmp_path, TINY), "--profile", profile, "--", target)
    (job,) = (job for job in planned.jobs(tmp_path, *arguments) if job.rule.name == "pretrain")
    asked = planned.sbatch(job)
    assert (asked["nodes"], asked["ntasks"], asked["gres"]) == ("2", "2", "gpu:4"), "4 GPUs on each node"
    assert not asked.keys() & {"gpus", "ntasks-per-gpu"}
    assert asked["cpus-per-task"] == "8"
    assert "uuid) srun " in job.shellcmd, "they meet by a name that nobody can guess"
    assert "--nproc-per-node 4 --nnodes 2 " in job.shellcmd
    with chdir(tmp_path):
        assert int(asked["mem"]) == memory_of(processes=4), "on each node"


def memory_of(processes: int) -> int:
    """Megabytes that a pretraining on the test's first cohort asks for on a node."""
    scans = TINY["cohorts"]["SimA"]["simulated"]["subjects"]
    return estimates.training_mb(scans, (1, *[TINY["preprocessing"]["size"]] * 3), 1, processes)


@pytest.mark.parametrize(
    ("asked", "processes"), [("gpu=1", 1), ("gpu=4", 4), ("gpu=1 * attempt", 1), ("gres='gpu:a100:3'", 3)]
)
def test_each_process_of_a_pretraining_has_its_memory(tmp_path: Path, asked: str, processes: int) -> None:
    target = "results/pretraining/mae/vit_xxs/encoder.safetensors"
    arguments = ("--configfile", write_config(tmp_path, TINY), "--set-resources", f"pretrain:{asked}")
    (job,) = (job for job in planned.jobs(tmp_path, *arguments, "--", target) if job.rule.name == "pretrain")
    with chdir(tmp_path):
        assert job.resources.mem_mb == memory_of(processes)
