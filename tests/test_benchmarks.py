"""The benchmarks that take neither real data nor minutes run, at a small size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from neuropeft.cohorts.simulate import participants, write_scan
from neuropeft.cohorts.synthetic_store import write_synthetic
from workflow_command import ROOT


def printed(name: str, *arguments: object) -> str:
    """Return what a benchmark prints."""
    command = list(map(str, [sys.executable, ROOT / "benchmarks" / name, *arguments]))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_of_start_up():
    assert "fine-tune to its first step" in printed("startup.py", 1)


def test_of_a_large_dry_run():
    assert "a job reads the workflow's files in" in printed("dry_run.py", "--scans", 100, "--cells", 20)


def test_of_the_stages_of_a_large_cohort():
    lines = printed("scale.py", "--scans", 30).splitlines()
    assert [line.endswith(" s of processors") for line in lines] == [True] * 5


def test_of_stacked_cells_whose_gradients_are_those_of_cells_in_turn():
    told = printed("stacked.py", "--backbone", "vit_xs", "--cells", 2, "--batch", 1, "--repeats", 1)
    assert float(told.split()[-1]) < 1e-5


def test_of_the_autoencoder():
    assert "of the memory" in printed("mae.py", "--batch", 1, "--steps", 1)


def test_of_what_only_a_gpu_shows():
    _, *lines = printed("gpu.py", "--device", "cpu", "--small").splitlines()
    assert len(lines) == 10
    told = [re.search(r" s  (pass|skipped|unknown) ", line)[1] for line in lines]
    assert told == ["pass", "skipped", *["pass"] * 5, *["unknown"] * 3]
    assert "in 2 parts" in lines[3]


def test_a_failing_check_of_the_gpu_stops_no_other_and_is_told():
    code = """
import sys
import gpu
gpu.CHECKS = {
    "raises": lambda case: 1 / 0,
    "differs": lambda case: gpu.alike([1.0, 2.0], [1.0, 2.1], 0.02),
    "stops": lambda case: gpu.alike([1.0, 2.0], [1.0], 0.02),
    "is nan": lambda case: gpu.alike([1.0], [float("nan")], 0.02),
    "holds": lambda case: gpu.alike([1.0, 2.0], [1.0, 2.01], 0.02),
}
sys.argv = ["gpu.py", "--device", "cpu", "--small"]
gpu.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False
    )
    _, *lines = done.stdout.splitlines()
    assert [line.split(" s  ")[1].split()[0] for line in lines] == ["FAIL"] * 4 + ["pass"]
    assert "ZeroDivisionError" in lines[0]
    assert done.returncode == 1


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A simulated head with its true mask, and the BIDS folder in which they lie."""
    root = tmp_path_factory.mktemp("bids")
    (person,) = participants(1, 1, "A", {"CN": 1.0}, (50, 60), 1)
    return write_scan(person, root, effect=0.0), root


def test_of_bias_correction(head: tuple[Path, Path]):
    _, row = printed("n4.py", head[0]).splitlines()
    name, correlation, *_ = row.split("\t")
    assert name == head[0].name
    assert float(correlation) > 0.9


def test_of_skull_stripping(head: tuple[Path, Path]):
    *_, mean = printed("skull_strip.py", head[1]).splitlines()
    assert float(re.search(r"1 scans: mean ([\d.]+)", mean)[1]) > 0.97


def test_of_synthetic_volumes(tmp_path: Path):
    store = tmp_path / "Synth/store"
    write_synthetic(4, 0, 32, store, processes=1)
    printed_lines = printed("synthetic.py", store, "--volumes", 4, "--out", tmp_path).splitlines()
    same = next(line for line in printed_lines if line.startswith("detail inside, fine\t"))
    assert len(set(same.split("\t")[1:])) == 1, "the store holds the volumes that it is compared with"
    assert {"slices.png", "histograms.png"} <= {path.name for path in tmp_path.iterdir()}
