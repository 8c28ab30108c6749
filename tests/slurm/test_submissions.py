"""What the profile asks SLURM for, rule by rule, as the real scheduler has understood it."""

import csv
import re
from collections.abc import Iterable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import project
import pytest
from cluster import Cluster, wait_for

from workflow_command import ROOT, command, start

Asked = tuple[str, int, int, int, int]
PARTITIONS = ("cpu", "gpu")
# rule: partition, CPU cores, memory in MB, GPUs, minutes
CPU_RULE = ("cpu", 1, 4000, 0, 60)
EXPECTED = {
    "simulate_scans": CPU_RULE,
    "preprocess_n4_bias_correction": ("cpu", 1, 4000, 0, 15),  # group and, of its rules, the one submitted
    "pack_cohort": ("cpu", 1, 4000, 0, 10),
    "split": CPU_RULE,
    "check_leaks": CPU_RULE,
    "check_pretraining": CPU_RULE,
    "controls": ("cpu", 1, 8000, 0, 120),
    "pretrain": ("gpu", 8, 8001, 1, 10),
    "finetune": ("gpu", 4, 8001, 1, 10),
    "predict": ("gpu", 4, 8001, 1, 10),
    "features": ("gpu", 4, 8000, 1, 10),
    "probes": ("cpu", 1, 8000, 0, 120),
}


@pytest.fixture(scope="module")
def submitted(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    """What SLURM knows of one job of each rule of tiny.yaml; none of them ever starts.

    A head process per rule finds the files of all other rules there, empty.
    """
    folder = tmp_path_factory.mktemp("submitted")
    _start(folder, "--summary").join()
    targets = {}
    for row in csv.DictReader((folder / "output").read_text().splitlines(), delimiter="\t"):
        targets.setdefault(row["rule"], row["output_file"])
        path = folder / row["output_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for partition in PARTITIONS:
        slurm.call("scontrol", "update", f"PartitionName={partition}", "State=DOWN")
    profile = ["--profile", str(project.PROFILE), *project.FASTER, "--nolock"]
    heads = [
        _start(folder, *profile, "--allowed-rules", rule, "--force", "--", targets[rule])
        for rule in (name.removeprefix("preprocess_") for name in EXPECTED)
    ]
    try:
        wait_for("all are submitted", lambda: len(slurm.jobs()) == len(EXPECTED) or _any_ended(heads))
        jobs = slurm.call("scontrol", "--oneliner", "show", "jobs").splitlines()
        yield {_rule(job): _asked(job) for job in jobs}
    finally:
        for head in heads:
            head.kill()
            head.join()


def _start(folder: Path, *arguments: str) -> ForkServerProcess:
    words = command(folder, "--configfile", ROOT / "tests" / "tiny.yaml", *arguments)
    return start(words, folder / "output", folder / "errors", folder)


def _any_ended(heads: Iterable[ForkServerProcess]) -> bool:
    return any(not head.is_alive() for head in heads)


@pytest.mark.parametrize("rule", EXPECTED)
def test_a_rule_asks_for(submitted: dict[str, Asked], rule: str) -> None:
    assert submitted[rule] == EXPECTED[rule]


def _rule(job: str) -> str:
    found = re.search(r"Comment=rule_(\w+?)(?:_wildcards_|\s)", job)
    assert found is not None, job
    return found[1]


def _asked(job: str) -> Asked:
    values = dict(part.split("=", 1) for part in job.split() if "=" in part)
    tres = dict(part.split("=") for part in values["TRES"].split(","))
    number, unit = float(tres["mem"][:-1]), tres["mem"][-1]
    memory = round(number * {"M": 1, "G": 1024}[unit])
    days, _, clock = values["TimeLimit"].rpartition("-")  # 1-02:30:00
    hours, minutes, _ = map(int, clock.split(":"))
    limit = (int(days or 0) * 24 + hours) * 60 + minutes
    gpus = re.search(r"Tres\w+=gres:gpu(?::[a-z]\w*)?:?(\d*)", job)
    return values["Partition"], int(tres["cpu"]), memory, int(gpus[1] or 1) if gpus else 0, limit
