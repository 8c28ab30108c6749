"""The benchmarks that need no data of one's own run, at a small size."""

import subprocess
import sys

import pytest

from workflow_command import ROOT

RUNS = {
    "startup.py": (["1"], "fine-tune to its first step"),
    "dry_run.py": (["--scans", "20", "--cells", "20"], "a job reads the workflow's files in"),
    "mae.py": (["--batch", "1", "--steps", "1"], "memory"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_prints_its_figure(name):
    arguments, figure = RUNS[name]
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert figure in done.stdout
