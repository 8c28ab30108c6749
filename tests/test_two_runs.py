"""Two runs of the workflow on one results folder."""

import os
import signal
import subprocess
import time
from pathlib import Path

import yaml

from workflow_command import ROOT, command, jobs_in, snakemake, write_config

TARGET = "results/simulated/SimA/participants.tsv"


READ = [
    *(f"results/cohorts/{cohort}/subjects.tsv" for cohort in ("SimA", "SimB")),
    *(f"results/tasks/{task}/{cohort}.tsv" for task in ("ad", "age") for cohort in ("SimA", "SimB")),
]


def read_by_jobs(folder: Path) -> dict[Path, tuple[int, str]]:
    """Return what jobs read of the tables of cohorts and tasks, with the times."""
    found = [*map(folder.joinpath, READ), *folder.glob("results/cohorts/*/scans.tsv")]
    return {path: (path.stat().st_mtime_ns, path.read_text()) for path in found}


def run(folder: Path, config: Path) -> "subprocess.Popen[str]":
    """Start a run that writes a table, in a process group of its own."""
    return subprocess.Popen(
        command(folder, "--configfile", config, "--cores", "1", TARGET),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_second_run_is_refused_and_says_why(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    raw["preprocessing"]["scans_per_job"] = 2
    raw["cohorts"]["SimA"]["simulated"]["seed"] = 9
    raw["tasks"]["ad"]["classes"] = {"AD": "AD", "CN": "CN"}
    others = write_config(tmp_path, raw)
    published = snakemake(tmp_path, "--configfile", ROOT / "tests/tiny.yaml", "--cores", "1", *READ)
    assert published.returncode == 0, published.stderr
    first, locks = run(tmp_path, ROOT / "tests/tiny.yaml"), tmp_path / ".snakemake" / "locks"
    try:
        while not list(locks.glob("*")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGSTOP)  # it shall not end before the second has looked
        assert list(locks.glob("*"))
        written = read_by_jobs(tmp_path)
        second = run(tmp_path, others)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 1
        for target in ("all", "status", "tables_partial"):
            beside = ("--cores", "1", "--nolock", "--dry-run", target)
            done = snakemake(tmp_path, "--configfile", others, *beside)
            assert done.returncode == 0, done.stderr
            assert ("labels" in jobs_in(done.stdout)) == (target == "all"), "it knows what has changed"
        assert read_by_jobs(tmp_path) == written, "the first run's jobs read it"
        assert "make sure that no other Snakemake process is trying to create the same files" in said
        assert str(tmp_path) in said
        assert "--unlock" in said, "what to do after a power loss"
        assert not (tmp_path / TARGET).exists()
        os.killpg(first.pid, signal.SIGCONT)
        said, _ = first.communicate(timeout=120)
        assert first.returncode == 0, said
        assert (tmp_path / TARGET).exists()
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.communicate()
