"""What jobs ask SLURM for, by the profile, the cohort, the backbone, the pack and the attempt."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest
import yaml
from snakemake.jobs import Job

import planned
from neuropeft import estimates
from neuropeft.cohorts.prepare import Tables, prepare
from neuropeft.config import Config
from neuropeft.grid import cells
from neuropeft.packs import packs
from workflow_command import ROOT, STEPS, TINY, write_config

pytestmark = pytest.mark.filterwarnings("ignore:coroutine")  # Snakemake's own, of disk_mb
SLURM = ("--profile", ROOT / "profiles/slurm")
# So large that all estimates lie between the least and the most that a job asks for.
SCANS = {"SimA": 2000, "SimB": 500}
SIZED = copy.deepcopy(TINY)
SIZED["cohorts"] = {name: {"simulated": {"subjects": scans}} for name, scans in SCANS.items()}
SIZED["preprocessing"] = {"scans_per_job": 250, "size": 80}
SIZED["backbones"] = {
    name: backbone
    for name, backbone in yaml.safe_load((ROOT / "config.yaml").read_text())["backbones"].items()
    if backbone["kind"] == "vit"
}
SIZED["pretraining"]["mae"] |= {"steps": 12_000, "batch_size": 16}
SIZED["training"] |= {"epochs": 20, "search": {"trials": 3, "trials_per_job": 2, "share": 0.5}}
SIZED["tasks"] = {"ad": TINY["tasks"]["ad"]}
SIZED["grid"] = [
    TINY["grid"][0]
    | {
        "tasks": ["ad"],
        "backbones": list(SIZED["backbones"]),
        "fractions": [50, 100],
        "seeds": list(range(6)),
    }
]
SIZED["cells_per_job"] = 5
CONFIG = Config.model_validate(SIZED)
SIZE = CONFIG.preprocessing.size
CELLS_OF_A_BASE = 2 * 6
Estimated = Callable[[Job, int], int]  # from a job and its attempt


def scaled(number: int) -> Estimated:
    return lambda job, attempt: number * attempt


def per_chunk(each: float) -> Estimated:
    def minutes(job: Job, attempt: int) -> int:
        rows = tables().chunks(job.wildcards.cohort)[job.wildcards.chunk]
        return estimates.scan_minutes(each, len(rows), attempt)

    return minutes


@cache
def tables() -> Tables:
    """Return who is in the cohorts; nothing is written."""
    return prepare(CONFIG, Path("results"))


def per_cohort(each: float) -> Estimated:
    return lambda job, attempt: estimates.scan_minutes(each, SCANS[job.wildcards.cohort], attempt)


def pretraining(job: Job, attempt: int) -> int:
    backbone = CONFIG.backbones[job.wildcards.backbone]
    return estimates.pretrain_minutes(backbone, CONFIG.trained["mae"], SIZE, attempt)


def fine_tuning(job: Job, attempt: int) -> int:
    backbone, members = CONFIG.backbones[job.wildcards.backbone], len(json.loads(job.params.specs))
    return estimates.finetune_minutes(backbone, CONFIG.training, SIZE, members, SCANS["SimA"], attempt)


def searching(job: Job, attempt: int) -> int:
    backbone, trials = CONFIG.backbones[job.wildcards.backbone], 2 if job.wildcards.first == "0" else 1
    return estimates.finetune_minutes(backbone, CONFIG.training, SIZE, trials / 2, SCANS["SimA"], attempt)


def prediction(job: Job, attempt: int) -> int:
    backbone, scans = CONFIG.backbones[job.wildcards.backbone], SCANS[job.wildcards.cohort]
    return estimates.predict_minutes(backbone, SIZE, CELLS_OF_A_BASE, scans, attempt)


def volumes(job: Job, attempt: int) -> int:
    cohort = job.wildcards.cohort if job.rule.name == "predict" else "SimA"
    return estimates.training_mb(SCANS[cohort], (1, SIZE, SIZE, SIZE), attempt)


def features(job: Job, attempt: int) -> int:
    backbone, scans = CONFIG.backbones[job.wildcards.backbone], SCANS[job.wildcards.cohort]
    return estimates.predict_minutes(backbone, SIZE, 1, scans, attempt)


def probing(job: Job, attempt: int) -> int:
    return estimates.probes_mb(SCANS["SimA"], sum(SCANS.values()), attempt)


# rule: partition, CPU cores, GPUs, MB, minutes
DEFAULT = ("cpu", 1, 0, scaled(4000), scaled(60))
ASKED = {
    **dict.fromkeys(("simulate_scans", "simulate_tables", "list_excluded", "split", "check_leaks"), DEFAULT),
    **dict.fromkeys(("check_pretraining", "parameter_counts", "tables", "figures"), DEFAULT),
    **dict.fromkeys(("diagnostics", "report"), DEFAULT),
    "n4_bias_correction": ("cpu", 1, 0, scaled(4000), per_chunk(1.0)),
    "skull_strip": ("cpu", 1, 0, scaled(8000), per_chunk(0.5)),
    "register_to_template": ("cpu", 1, 0, scaled(4000), per_chunk(0.5)),
    "resample_to_template": ("cpu", 1, 0, scaled(4000), per_chunk(0.3)),
    "pack_cohort": ("cpu", 1, 0, scaled(4000), per_cohort(0.01)),
    "qc": ("cpu", 1, 0, scaled(4000), per_cohort(0.02)),
    "controls": ("cpu", 1, 0, scaled(8000), scaled(120)),
    "confounds": ("cpu", 1, 0, scaled(8000), scaled(60)),
    "score": ("cpu", 1, 0, scaled(4000), scaled(60)),
    "pretrain": ("gpu", 8, 1, volumes, pretraining),
    "trial": ("gpu", 4, 1, volumes, searching),
    "finetune": ("gpu", 4, 1, volumes, fine_tuning),
    "predict": ("gpu", 4, 1, volumes, prediction),
    "features": ("gpu", 4, 1, scaled(estimates.MODEL_MB), features),
    "probes": ("cpu", 1, 0, probing, scaled(120)),
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Job]]:
    """The jobs of two large cohorts and two backbones under the profile."""
    folder = tmp_path_factory.mktemp("sized")
    found = planned.jobs(folder, "--configfile", write_config(folder, SIZED), *SLURM)
    with chdir(folder):
        yield found


def of_rule(jobs: list[Job], rule: str) -> list[Job]:
    return [job for job in jobs if job.rule.name == rule]


@pytest.mark.parametrize("rule", ASKED)
def test_a_rule_asks_for(jobs: list[Job], rule: str) -> None:
    partition, cores, gpus, mb, minutes = ASKED[rule]
    members = of_rule(jobs, rule)
    assert members
    for job in members:
        for attempt in (1, 2):
            job.attempt = attempt
            asked = planned.sbatch(job)
            assert (job.resources.slurm_account, job.resources.slurm_partition) == ("lab", partition)
            assert (int(asked["cpus-per-task"]), int(asked.get("gpus", 0))) == (cores, gpus)
            assert (int(asked["mem"]), int(asked["t"])) == (mb(job, attempt), minutes(job, attempt)), attempt
            warned = "USR1@120" if rule in ("pretrain", "trial", "finetune") else None
            assert asked.get("signal") == warned, "what trains saves before the time limit"


def test_every_rule_is_submitted_but_what_makes_links_or_looks_at_what_is_there(
    jobs: list[Job], tmp_path: Path
) -> None:
    assert planned.submitted(jobs) == ASKED.keys()
    local = {"all", "cell", "choose", "people", "labels", "sites"}
    assert {job.rule.name for job in jobs} == ASKED.keys() | local
    arguments = ("--configfile", write_config(tmp_path, TINY), *SLURM, "--", "status", "tables_partial")
    looking = planned.jobs(tmp_path, *arguments)
    assert {job.rule.name for job in looking} == {"status", "tables_partial", "parameter_counts_partial"}
    assert planned.submitted(looking) == {"parameter_counts_partial"}


def test_estimates_of_these_jobs_differ(jobs: list[Job]) -> None:
    """So that the numbers above tell one cohort, backbone and pack from another."""
    for rule, fewest in {
        "pretrain": 2,
        "finetune": 4,
        "predict": 3,
        "n4_bias_correction": 3,
        "qc": 2,
    }.items():
        minutes = {ASKED[rule][-1](job, 1) for job in of_rule(jobs, rule)}
        assert len(minutes) >= fewest, rule
        assert all(estimates.START_MINUTES <= number < estimates.LONGEST_MINUTES / 2 for number in minutes)


def test_so_many_cells_share_a_job_as_the_setting_says(jobs: list[Job]) -> None:
    shared = sorted(len(json.loads(job.params.specs)) for job in of_rule(jobs, "finetune"))
    assert shared == sorted(map(len, packs(CONFIG, cells(CONFIG)).values()))
    assert max(shared) <= CONFIG.cells_per_job < CELLS_OF_A_BASE


def test_the_steps_of_a_chunk_are_submitted_together(jobs: list[Job]) -> None:
    groups = {job.group for step in STEPS for job in of_rule(jobs, step)}
    assert groups == {"preprocess"}
    assert {job.rule.name for job in jobs if job.group is not None} == set(STEPS)


def test_no_command_names_all_chunks_of_a_cohort(jobs: list[Job]) -> None:
    # At UK Biobank's size their tables are more than a command may have as arguments.
    assert len(of_rule(jobs, "resample_to_template")) > 2 * 4
    assert max((job.shellcmd or "").count("/chunks/") for job in jobs) <= 4, "in and out of one"
