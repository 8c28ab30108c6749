"""Two trainings of one state folder come one after the other."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.train import lease
from neuropeft.train.lock import LOCK, held, lock
from neuropeft.train.signals import REQUEUE_EXIT_CODE

HOLD = """
import sys
from pathlib import Path
from neuropeft.train.lock import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""
PRETRAIN = """
import tiny_cells, torch
step = torch.optim.AdamW.step
def slow_step(self):
    print("step", flush=True)
    {wait}
    step(self)
torch.optim.AdamW.step = slow_step
from neuropeft.train.pretrain import pretrain
pretrain(tiny_cells.pretraining(), {store!r}, [], {out!r}, {state!r}, device="cpu", checkpoint_seconds=0)
"""


def holder(state: Path) -> "subprocess.Popen[str]":
    """Start a process that holds the lock of `state` until it reads a line."""
    script = [sys.executable, "-c", HOLD, str(state)]
    process = subprocess.Popen(
        script,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": tiny_cells.WORKFLOW},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_lock_is_seen_and_ends_with_its_process(tmp_path: Path) -> None:
    assert not held(tmp_path)
    process = holder(tmp_path)
    assert held(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not held(tmp_path)
    with lock(tmp_path):
        pass
    assert not held(tmp_path)


def test_a_process_that_waits_leaves_when_it_is_told_to(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom neuropeft.train.lock import lock\n"
        "with lock(Path(sys.argv[1])):\n    pass"
    )
    with lock(tmp_path):
        waiting = tiny_cells.python(code, arguments=(tmp_path,))
        assert waiting.stderr is not None
        assert "waiting until another training" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGUSR1)
        assert waiting.wait(timeout=30) == REQUEUE_EXIT_CODE


def test_a_lock_says_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with lock(tmp_path):
        said = (tmp_path / LOCK).read_text()
    assert said == f"process {os.getpid()} on {socket.gethostname()}, SLURM job 7\n"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_what_is_no_file_is_no_lock_and_nobody_waits_at_it(tmp_path: Path, make, monkeypatch) -> None:
    monkeypatch.setattr(lease, "FOLDER", tmp_path)
    monkeypatch.setattr(lease, "local_gpus", lambda: ["0"])
    for name in ("SLURM_JOB_ID", "LOCAL_RANK", lease.VISIBLE):
        monkeypatch.delenv(name, raising=False)
    for name, use in ((LOCK, lock(tmp_path).__enter__), ("neuropeft-gpu-0.lock", lease.lease)):
        make(tmp_path / name)
        with pytest.raises(UserError, match=rf"cannot lock .*{name}: .*; delete it"):
            use()
    assert not held(tmp_path)


def test_looking_at_the_lock_needs_no_torch() -> None:
    code = "import sys, neuropeft.train.lock; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tiny_cells.WORKFLOW)}, check=True)


def test_without_locks_it_goes_on_and_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock(tmp_path):
        assert not held(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{tmp_path} cannot be locked (Function not implemented): see to it that only one training uses it"
    ]


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.slow
def test_a_second_pretraining_waits_and_takes_over(tmp_path: Path, killed: bool) -> None:
    store = tiny_cells.make_store(tmp_path / "store")
    paths = {"store": str(store), "state": str(tmp_path / "state")}
    code = PRETRAIN.format(wait="input()", out=str(tmp_path / "one"), **paths)
    first = tiny_cells.python(code, stdin=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdin is not None
    for _ in range(5):  # the checkpoint of four steps is there
        first.stdout.readline()
        first.stdin.write("\n")
        first.stdin.flush()
    second = tiny_cells.python(PRETRAIN.format(wait="pass", out=str(tmp_path / "two"), **paths))
    assert second.stderr is not None
    said = second.stderr.readline()
    assert said.startswith(
        f"waiting until another training has left {tmp_path / 'state'}: process {first.pid}"
    )
    if killed:
        first.kill()
    first.communicate("\n" * 99)
    steps, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert ("going on from step" in said) == killed
    assert (steps == "") == (not killed), "what the first has finished is not trained again"
    assert (tmp_path / "two" / "encoder.safetensors").exists()
    assert not (tmp_path / "state" / LOCK).read_text().startswith(f"process {first.pid} ")
