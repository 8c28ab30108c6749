"""Two jobs on one machine never get the same GPU; the GPUs here are names that nothing looks behind."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import planned
import tiny_cells
from neuropeft.errors import UserError
from neuropeft.train import lease

LOCAL = Path(__file__).parents[1] / "profiles/local"
HOLD = """
import os, sys, time
from pathlib import Path
from neuropeft.train import lease
lease.FOLDER, lease.POLL_SECONDS = Path(sys.argv[1]), 0.05
lease.local_gpus = lambda: sys.argv[3].split(",")
lease.lease(int(sys.argv[2]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""
RUN = """
import sys
from pathlib import Path
from neuropeft.train import lease
lease.FOLDER = Path(sys.argv[1])
lease.main(sys.argv[2:])
"""
SHOW = "import os, sys, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def no_gpus_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


class Jobs:
    """Processes that hold GPUs until they are ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, []

    def start(self, code: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        job = tiny_cells.python(code, arguments=(self.folder, *arguments), **environment)
        self.started.append(job)
        return job

    def hold(self, gpus: int, of: str = "0,1", **environment: str) -> "subprocess.Popen[str]":
        return self.start(HOLD, gpus, of, **environment)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    for job in jobs.started:
        job.kill()
        job.communicate()


def seen(job: "subprocess.Popen[str]") -> str:
    """Wait until a job has its GPUs; return which."""
    assert select.select([job.stdout], [], [], 30)[0], "it waits for GPUs that it should have"
    return job.stdout.readline().strip()


def test_each_job_has_a_gpu_of_its_own_until_it_dies(jobs: Jobs) -> None:
    first, second = jobs.hold(1), jobs.hold(1)
    held = seen(first)
    assert {held, seen(second)} == {"0", "1"}
    third = jobs.hold(1)
    said = third.stderr.readline()
    assert said.startswith("all GPUs (0,1) are taken: waiting for 1 (0: process ")
    assert f"{held}: process {first.pid} on {os.uname().nodename}" in said
    first.send_signal(signal.SIGKILL)
    assert seen(third) == held


def test_a_job_of_several_gpus_takes_all_or_waits(jobs: Jobs) -> None:
    small = jobs.hold(1, "0,1,2")
    assert seen(small) == "0"
    large = jobs.hold(3, "0,1,2")
    assert "waiting for 3" in large.stderr.readline()
    assert seen(jobs.hold(2, "0,1,2")) == "1,2", "who waits holds none"
    assert seen(jobs.hold(1, "3,4,5")) == "3"


def test_only_gpus_that_are_already_visible_are_chosen_from(jobs: Jobs) -> None:
    assert seen(jobs.hold(1, CUDA_VISIBLE_DEVICES="5, GPU-1a/2")) == "5"
    assert seen(jobs.hold(1, CUDA_VISIBLE_DEVICES="5, GPU-1a/2")) == "GPU-1a/2"
    assert seen(jobs.hold(1, CUDA_VISIBLE_DEVICES="-1")) == "-1", "hidden GPUs stay hidden"


def test_a_launched_program_holds_its_gpus(jobs: Jobs) -> None:
    assert seen(jobs.start(RUN, 2, "-c", SHOW, CUDA_VISIBLE_DEVICES="0,1,2")) == "0,1"
    waiting = jobs.start(RUN, 2, "-c", SHOW, CUDA_VISIBLE_DEVICES="0,1,2")
    assert "waiting for 2" in waiting.stderr.readline()
    jobs.started[0].kill()
    assert seen(waiting) == "0,1"


@pytest.mark.parametrize(("name", "of"), [("SLURM_JOB_ID", "0"), ("LOCAL_RANK", "0,1")])
def test_who_has_been_given_gpus_takes_none(jobs: Jobs, name: str, of: str) -> None:
    assert seen(jobs.hold(1, of, **{name: "0"})) == "None"
    assert not list(jobs.folder.iterdir())


def test_jobs_in_one_allocation_of_several_gpus_share_none(jobs: Jobs) -> None:
    taken = [seen(jobs.hold(1, SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="0,1")) for _ in range(2)]
    assert sorted(taken) == ["0", "1"]
    # the GPUs of another allocation have the same numbers and are others
    assert seen(jobs.hold(1, SLURM_JOB_ID="8", CUDA_VISIBLE_DEVICES="0,1")) == "0"


def test_without_gpus_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "FOLDER", tmp_path)
    monkeypatch.setattr(lease, "local_gpus", list)
    lease.lease()
    assert lease.VISIBLE not in os.environ
    assert not list(tmp_path.iterdir())


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "local_gpus", lambda: ["0", "1"])
    with pytest.raises(UserError, match=r"4 GPUs are asked for and there are 2 \(0,1\)"):
        lease.lease(4)


@pytest.mark.parametrize("verb", ["finetune", "pretrain", "predict"])
def test_the_verbs_that_train_take_a_gpu_before_torch_is_imported(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\nfrom neuropeft import verbs\nfrom neuropeft.train import lease\n"
        "lease.lease = lambda: sys.exit(f'leased, torch is imported: {\"torch\" in sys.modules}')\n"
        f"getattr(verbs, '{verb}')(None)"
    )
    assert tiny_cells.python(code).communicate()[1] == "leased, torch is imported: False\n"


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", 0), ("-1", 0), ("3", 1), ("0,1,2", 3), ("0,1,2,3,4,5", 6)]
)
def test_the_local_profile_counts_the_gpus_that_are_listed(
    visible: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert planned.options("--profile", LOCAL)[1].resources["gpu"] == gpus


@pytest.mark.parametrize(("visible", "granted"), [("-1", 0), ("0,1,2", 3)])
@pytest.mark.slow
def test_the_local_profile_lets_jobs_have_the_gpus_there_are(
    tmp_path: Path, visible: str, granted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "Snakefile").write_text(
        "rule job:\n    output: 'out'\n    resources: gpu=4\n    shell: 'echo {resources.gpu} > out'\n"
    )
    command = [sys.executable, "-m", "snakemake", "--profile", str(LOCAL), "--cores", "1"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out").read_text() == f"{granted}\n"


def test_jobs_have_all_gpus_of_the_machine_where_none_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    glob = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: glob(tmp_path if self == Path("/dev") else self, pattern)
    )
    assert lease.local_gpus() == ["0", "1", "2"]
    assert planned.options("--profile", LOCAL)[1].resources["gpu"] == 3
    (tmp_path / "nvidia0").unlink()
    assert planned.options("--profile", LOCAL)[1].resources["gpu"] == 2
