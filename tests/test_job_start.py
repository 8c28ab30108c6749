"""How a job starts on its node: what it reads, which Python it runs, and how many processes train."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.shell import shell

import planned
import tiny_cells
from neuropeft.files import write_tsv
from workflow_command import ROOT

AS_A_JOB = ("--mode", "subprocess", "--configfile", ROOT / "tests/tiny.yaml")
# Loaded by nothing that Snakemake itself needs.
IMPORTS = """
import sys
from pathlib import Path
import planned
before = set(sys.modules)
planned.read(Path(sys.argv[1]), *sys.argv[2:])
heavy = {"torch", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "nibabel", "ants"}
print(sorted(heavy & (sys.modules.keys() - before)))
"""


def test_it_indexes_no_cohort(tmp_path: Path) -> None:
    planned.read(tmp_path, *AS_A_JOB)
    assert not (tmp_path / "results").exists()


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    said, errors = tiny_cells.python(IMPORTS, arguments=(tmp_path, *AS_A_JOB)).communicate()
    assert said == "[]\n", errors


def test_it_reads_a_cohorts_index_once_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "results/cohorts/SimA/scans.tsv"
    write_tsv(index, [{"scan_id": f"s{i}", "chunk": f"x{i % 2}"} for i in range(6)], ("scan_id", "chunk"))
    names = planned.read(tmp_path, *AS_A_JOB).globals
    opened, open_file = [], open

    def noting(path: object, *arguments: object, **named: object) -> object:
        opened.append(Path(str(path)).name)
        return open_file(path, *arguments, **named)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", noting)
    monkeypatch.setattr("io.open", noting)
    for chunk in ("x0", "x1", "x0"):
        assert len(names["JOBS"].chunk_rows("SimA", chunk)) == 3
        assert names["JOBS"].scans("SimA") == 6
    monkeypatch.undo()
    assert opened.count(index.name) == 1


@pytest.mark.parametrize(
    ("deployment", "provided"), [((), False), (("conda",), True), (("apptainer",), True)]
)
def test_it_runs_this_checkout_by_the_python_that_is_to_run_it(
    tmp_path: Path, deployment: tuple[str, ...], provided: bool
) -> None:
    given = ("--software-deployment-method", *deployment) if deployment else ()
    checkout = tmp_path / """it's "a" $HOME"""
    checkout.symlink_to(ROOT)
    planned.read(tmp_path, *AS_A_JOB, *given, "--snakefile", checkout / "Snakefile")
    stand_in(tmp_path, "python", "echo an environment")
    (tmp_path / "neuropeft.py").write_text("raise SystemExit('a file in the working directory')")
    variables = 'echo "$PYTHONPATH"; echo $PYTHONNOUSERSITE; '
    shown = in_shell(tmp_path, variables + 'python -c "import neuropeft; print(neuropeft.__file__)"')
    package, alone, python = shown.splitlines()
    assert (package, alone) == (str(checkout / "workflow"), "1")
    assert (python == "an environment") == provided
    assert provided or python == str(checkout / "workflow/neuropeft/__init__.py")


@pytest.mark.parametrize(("before", "mode"), [(0o022, "640"), (0o077, "600")])
def test_results_are_for_the_owner_and_the_group_at_most(tmp_path: Path, before: int, mode: str) -> None:
    os.umask(before)
    planned.read(tmp_path, *AS_A_JOB)
    assert in_shell(tmp_path, "touch made; stat -c %a made") == f"{mode}\n"


def stand_in(folder: Path, name: str, script: str) -> None:
    """Put a program into `folder` that takes the place of another."""
    program = folder / name
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


def in_shell(folder: Path, command: str, **environment: str) -> str:
    """Return what a command of a job prints, where the programs in `folder` come before others."""
    path = f"{folder}:{os.environ['PATH']}"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PATH": path, **environment}
    run = ["bash", "-c", shell._process_prefix + command]
    return subprocess.run(run, env=variables, cwd=folder, capture_output=True, text=True, check=True).stdout


class Resources(dict):
    """Resources of a job, as Snakemake gives them to functions."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def launched(tmp_path: Path):
    """Return what gives the commands by which a job with these resources starts its training."""
    # A Python that an environment provides is not hidden by the one that runs Snakemake.
    start = planned.read(tmp_path, *AS_A_JOB, "--software-deployment-method", "conda").globals["launcher"]
    stand_in(tmp_path, "python", 'echo "$*"')
    stand_in(tmp_path, "hostname", "echo first-node")
    # What srun starts on each node: the arguments after its own options.
    stand_in(tmp_path, "srun", 'while [[ $1 = --* ]]; do echo "$1"; shift; done; exec "$@"')

    def launch(job: int = 7, **resources: object) -> list[str]:
        command = f"{start(Resources(resources), 8)} -m neuropeft pretrain"
        return in_shell(tmp_path, command, SLURM_JOB_ID=str(job)).splitlines()

    return launch


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({}, 1),
        ({"gpu": 1}, 1),
        ({"gpu": 2}, 2),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "shard:1,gpu:3", "gpu": 0}, 3),
    ],
)
def test_a_process_for_each_gpu_under_a_lease_of_them_all(launched, resources: dict, gpus: int) -> None:
    (line,) = launched(**resources)
    if gpus == 1:
        assert line == "-m neuropeft pretrain"
        return
    assert line.startswith(f"-m neuropeft.train.lease {gpus} -m torch.distributed.run ")
    assert f" --nproc-per-node {gpus} --standalone -m neuropeft pretrain" in line
    assert time_to_stop(line) > 60, "to finish a step, save, and ask SLURM"


def test_processes_of_several_nodes_meet_on_the_first_and_nobody_else_does(launched, tmp_path: Path) -> None:
    stand_in(tmp_path, "python", 'echo "$* by $PET_RDZV_ID"')
    asked = {"mpi": "srun", "nodes": 2, "gpu": 0, "gres": "gpu:4"}
    *options, line = launched(job=20_007, **asked)
    assert options == ["--nodes=2", "--ntasks=2", "--cpus-per-task=8"]
    assert " --nproc-per-node 4 --nnodes 2 " in line
    assert " --rdzv-backend c10d --rdzv-endpoint first-node:20007 -m neuropeft pretrain" in line
    other = launched(job=8, **asked)[-1]
    assert " --rdzv-endpoint first-node:20008 " in other
    names = [said.rpartition(" by ")[2] for said in (line, other)]
    assert names[0] != names[1]
    assert min(map(len, names)) > 30, "not to be guessed"
    assert time_to_stop(line) > 60
    assert " --nproc-per-node 1 " in launched(mpi="srun", nodes=2)[-1], "on a CPU too"


def test_the_warning_before_the_time_limit_ends_no_launcher(launched, tmp_path: Path) -> None:
    stand_in(tmp_path, "python", "kill -USR1 $$; echo alive")
    assert launched(mpi="srun", nodes=2, gres="gpu:4")[-1] == "alive"


def test_the_warning_before_the_time_limit_ends_no_snakemake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        planned.read(tmp_path, *AS_A_JOB)
        assert signal.getsignal(signal.SIGUSR1) == before, "outside of SLURM it is nobody's business"
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        planned.read(tmp_path, *AS_A_JOB)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def time_to_stop(line: str) -> int:
    words = line.split()
    return int(words[words.index("--shutdown-timeout") + 1])


def test_snakemake_looks_for_jobs_once_a_second_however_often_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = planned.read(tmp_path, "--configfile", ROOT / "tests/tiny.yaml")
    timers: list[int] = []
    clock = [100.0]
    scheduler = SimpleNamespace(_schedule_reevalutation=timers.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    workflow.globals["look_once_a_second"](scheduler)
    for clock[0] in (100.0, 100.1, 100.9, 101.0, 101.5):
        scheduler._schedule_reevalutation(1)
    assert timers == [1, 1]
