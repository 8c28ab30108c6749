"""How long 48 fine-tunes take on a SLURM with two GPUs: packed in one process, in Snakemake groups, alone.

    python benchmarks/packing.py [--modes packed groups alone] [--epochs 12]

It starts a SLURM of its own (root, slurm-wlm and munge; see tests/slurm), whose GPUs are pretended: cells
train on one CPU core each, two at a time, so leave two cores idle. Printed for each mode: the makespan from
Snakemake's start to its end; the pure training time, which is the sum of all cells over the two GPUs; their
ratio; the share of the makespan in which a GPU does not train; and, of a job, the seconds from submission to
start where nothing is waited for, from its start to the first step, and from the last cell's end to its own.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]

import cluster  # noqa: E402
import project  # noqa: E402

import tiny_cells  # noqa: E402

GPUS, SIZE, SCANS, SEEDS, PER_GROUP = 2, 48, 60, (0, 1, 2, 3), 12
MODES = {
    "packed": [],
    "groups": [
        *("--config", "cells_per_job=1", "--groups", "finetune=ft", "--group-components", f"ft={PER_GROUP}"),
        *("--set-resource-scopes", "gpu=local", "--resources", "gpu=1"),
    ],
    "alone": ["--config", "cells_per_job=1"],
}


def main() -> None:
    """Run the grid in each mode and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    with cluster.running() as slurm, tempfile.TemporaryDirectory() as name:
        slurm.call("scontrol", "update", "NodeName=node2", "State=DRAIN", "Reason=two GPUs suffice")
        for mode in options.modes:
            folder = Path(name) / mode
            targets = _prepare(folder, options.epochs)
            before = set(slurm.call("squeue", "--noheader", "--states=all", "--format=%i").split())
            started = time.monotonic()
            _snakemake(folder, targets, slurm, "--profile", project.PROFILE, *project.FASTER, *MODES[mode])
            _report(mode, slurm, folder, before, time.monotonic() - started)


def _prepare(folder: Path, epochs: int) -> list[str]:
    """Write a grid of 48 cells and all that they are trained on; return their files."""
    config = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    config["preprocessing"]["size"] = SIZE
    config["tasks"] = {"ad": config["tasks"]["ad"]}
    config["backbones"]["vit_xxs"] |= {"width": 96, "depth": 4, "heads": 4}
    config["training"] = {"epochs": epochs, "patience": epochs, "batch_size": 8, "warmup_epochs": 1}
    methods = ("full", "attention", "lora", "layernorm")
    config["methods"] = {kind: {"kind": kind, "lr": 1.0e-4} for kind in methods}
    block = {"tasks": ["ad"], "backbones": ["vit_xxs"], "pretraining": ["mae"], "methods": list(methods)}
    config["grid"] = [block | {"fractions": [50, 75, 100], "seeds": list(SEEDS)}]
    store = folder / "results" / "cohorts" / "SimA" / "store"
    tiny_cells.make_store(store, SCANS)
    volumes = np.random.default_rng(0).normal(size=(SCANS, 1, SIZE, SIZE, SIZE)).astype(np.float16)
    np.save(store / "volumes.npy", volumes)
    for seed in SEEDS:
        tiny_cells.make_split(folder / f"results/splits/ad/seed-{seed}.tsv", store)
        leaks = folder / f"results/splits/ad/leaks/SimA-seed-{seed}.tsv"
        leaks.parent.mkdir(parents=True, exist_ok=True)
        leaks.touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _snakemake(folder, ["results/pretraining/mae/vit_xxs/encoder.safetensors"], None, "--cores", 1)
    cell = "results/cells/ad/vit_xxs/mae/{}/fraction-{}/seed-{}/cost.json"
    return [
        cell.format(*key, seed) for key in ((m, f) for m in methods for f in (50, 75, 100)) for seed in SEEDS
    ]


def _snakemake(folder: Path, targets: list[str], slurm: cluster.Cluster | None, *options: object) -> None:
    command = project.command(folder, targets, *options, rules=("pretrain", "finetune", "cell"))
    environment = {**project.os.environ, **project.ONE_THREAD, **(slurm.environment if slurm else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def _report(mode: str, slurm: cluster.Cluster, folder: Path, before: set[str], makespan: float) -> None:
    paths = (folder / "results/_state/cells").glob("**/finished/cost.json")
    costs = {path.parts[-5:-2]: json.loads(path.read_text()) for path in paths}  # method, fraction, seed
    training = sum(cost["train_seconds"] for cost in costs.values()) / GPUS
    records = slurm.call("scontrol", "--oneliner", "show", "jobs").splitlines()
    jobs = [record for record in records if _value(record, "JobId") not in before]
    lasted = sum(_time(job, "EndTime") - _time(job, "StartTime") for job in jobs)
    print(
        f"{mode}: {len(costs)} cells in {len(jobs)} jobs, makespan {makespan:.0f} s, "
        f"pure training {training:.0f} s, ratio {makespan / training:.2f}, "
        f"GPUs idle {100 * (1 - training / makespan):.0f} %, a job holds its GPU for "
        f"{(lasted - training * GPUS) / len(costs):.1f} s per cell beside its training"
    )
    firsts, lasts = [], []
    for job in jobs:
        log = _log(folder, job)
        if log is None:
            continue  # a group's name does not tell its members
        cell = re.findall(r"cell 1/\d+, (\S+):", log.read_text())[0]
        born = float(subprocess.check_output(["stat", "-c", "%.W", log], text=True))
        firsts.append(born + costs[tuple(cell.split("/")[3:6])]["start_seconds"] - _time(job, "StartTime"))
        lasts.append(_time(job, "EndTime") - log.stat().st_mtime)
    queued = min(_time(job, "StartTime") - _time(job, "SubmitTime") for job in jobs)
    print(f"  submission to start {queued:.0f} s where a GPU is free (SLURM tells whole seconds)", flush=True)
    if firsts:
        print(
            f"  medians over the jobs: start to first step {np.median(firsts):.1f} s, last cell to end "
            f"{np.median(lasts):.1f} s",
            flush=True,
        )


def _log(folder: Path, job: str) -> Path | None:
    comment = re.search(r"Comment=rule_finetune_wildcards_(\S+)", job)
    logs = (folder / "results/logs/finetune").glob("**/*.log")
    return next(
        (log for log in logs if comment and "_".join(log.with_suffix("").parts[-5:]) == comment[1]), None
    )


def _time(record: str, key: str) -> float:
    return datetime.fromisoformat(_value(record, key)).timestamp()


def _value(record: str, key: str) -> str:
    """Return a value of a job as scontrol shows it."""
    return re.findall(rf"\b{key}=(\S+)", record)[0]


if __name__ == "__main__":
    main()
