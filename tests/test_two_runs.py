"""Two runs of the workflow on one results folder."""

import os
import signal
import subprocess
import time
from pathlib import Path

import yaml

from workflow_command import ROOT, command, write_config

TARGET = "results/simulated/SimA/participants.tsv"


def read_by_jobs(folder: Path) -> dict[Path, str]:
    """Return what jobs read that a starting workflow writes."""
    found = [*folder.glob("results/cohorts/*/*.tsv"), *folder.glob("results/tasks/*/*.tsv")]
    assert len(found) > 4
    return {path: path.read_text() for path in found}


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
    raw["tasks"]["ad"]["classes"] = {"AD": "AD", "CN": "CN"}
    others = write_config(tmp_path, raw)
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
