"""A project that is ready to pretrain, and Snakemake's head process on it."""

import copy
import csv
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import cluster
import numpy as np
import yaml

import tiny_cells
import workflow_command

PROFILE = workflow_command.ROOT / "profiles" / "slurm"
SIZE = 32  # voxels along an edge, as in tiny.yaml
SCANS = 14
RULES = ("pretrain", "people")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums come out the same
# Settings beside the profile's that only make waiting shorter here, or fit a SLURM without accounting.
FASTER = [
    *("--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "2"),
    *("--latency-wait", "10"),
]


def make(folder: Path, pretrainings: Sequence[str], steps: int) -> None:
    """Write a configuration of pretrainings that differ in their names alone, and what they need."""
    config = copy.deepcopy(workflow_command.TINY)
    template = config["pretraining"].pop("mae")
    config["pretraining"] = {name: template | {"steps": steps} for name in pretrainings}
    config["tasks"] = {"ad": config["tasks"]["ad"]}
    grid = config["grid"][0]
    config["grid"] = [grid | {"tasks": ["ad"], "pretraining": list(pretrainings), "seeds": [0]}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    store = folder / "results" / "cohorts" / "SimA" / "store"
    tiny_cells.make_store(store, SCANS)
    volumes = np.random.default_rng(0).normal(size=(SCANS, SIZE, SIZE, SIZE)).astype(np.float16)
    np.save(store / "volumes.npy", volumes[:, None])
    tiny_cells.make_split(folder / "results" / "splits" / "ad" / "seed-0.tsv", store)


def encoder(folder: Path, pretraining: str) -> Path:
    """Return where a pretraining puts its encoder."""
    return folder / "results" / "pretraining" / pretraining / "vit_xxs" / "encoder.safetensors"


def log(folder: Path, pretraining: str) -> str:
    """Return what the running or last process of a pretraining has said."""
    path = folder / "results" / "logs" / "pretrain" / pretraining / "vit_xxs.log"
    return path.read_text() if path.exists() else ""


def encoders(pretrainings: Sequence[str]) -> list[str]:
    """Return the encoders of some pretrainings, as targets."""
    return [str(encoder(Path(), name)) for name in pretrainings]


def command(
    folder: Path, targets: Sequence[str], *arguments: object, rules: Sequence[str] = RULES
) -> list[str]:
    """Return the command that makes the targets by no other rules."""
    configuration = ["--configfile", folder / "config.yaml", "--allowed-rules", *rules]
    threads = ["--set-threads", "pretrain=1", "finetune=1"]
    return workflow_command.command(folder, *configuration, *arguments, *threads, "--", *targets)


def alone(folder: Path, pretraining: str) -> None:
    """Pretrain in one process of this machine, without SLURM."""
    run = command(folder, encoders([pretraining]), "--cores", "1")
    subprocess.run(run, cwd=folder, check=True, capture_output=True, env=os.environ | ONE_THREAD)


class Head:
    """Snakemake's head process, which submits and watches."""

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str],
        python: Path,
        *arguments: str,
        rules: Sequence[str] = RULES,
    ) -> None:
        """Start it with the cluster's profile and, beside it, `arguments`; jobs have its Python."""
        self.output = folder / "head.log"
        options = ["--profile", str(PROFILE), *FASTER, *arguments]
        _, *words = command(folder, targets, *options, rules=rules)
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                [str(python), *words],
                cwd=folder,
                env=os.environ | ONE_THREAD,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        """Return what it has said."""
        return self.output.read_text()

    def finish(self, seconds: float = 300) -> None:
        """Wait until it ends well."""
        assert self.process.wait(timeout=seconds) == 0, self.said()

    def kill(self) -> None:
        """Kill it so that it can tidy nothing up."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def job_of(slurm: cluster.Cluster, pretraining: str) -> str:
    """Return the newest SLURM job of a pretraining, empty if there is none."""
    rows = slurm.call("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%k").splitlines()
    jobs = [row.split("|")[0] for row in rows if re.search(rf"_{pretraining}(_|$)", row.split("|")[1])]
    return jobs[-1] if jobs else ""


def limit(slurm: cluster.Cluster, job: str, minutes: int) -> None:
    """Give a job another time limit, which SLURM refuses while the job ends or is put back into the queue."""

    def accepted() -> bool:
        try:
            slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        except subprocess.CalledProcessError:
            return False
        return True

    cluster.wait_for(f"SLURM takes a limit of {minutes} min for job {job}", accepted)


def restarts(slurm: cluster.Cluster, job: str) -> int:
    """Return how often SLURM has started a job anew."""
    found = re.search(r"Restarts=(\d+)", slurm.call("scontrol", "show", "job", job))
    assert found is not None
    return int(found[1])


def history(folder: Path, pretraining: str) -> list[dict[str, str]]:
    """Return the loss curve of a pretraining, without its seconds."""
    with (encoder(folder, pretraining).parent / "history.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]
