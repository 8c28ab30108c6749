"""What a training run survives: kills at any moment, a full disk, other clocks and names."""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.cli import main
from neuropeft.config import Simulated
from neuropeft.files import partial_path, write_tsv
from neuropeft.train import checkpoint
from neuropeft.train import pretrain as pretraining
from neuropeft.train.lock import lock
from neuropeft.train.state import is_finished
from test_resume import PRETRAINING, SPEC, assert_same_delta

KILLS = 20
EVERY = 3  # steps from one checkpoint to the next

# One process imports torch and forks the runs. A step takes one second of the loop's clock, so that
# checkpoints fall on the same steps in every run.
FORKS = """
import json, os, random, signal, sys, time, types
import torch, torch._dynamo  # once, and not in each fork
from pathlib import Path
import tiny_cells
from neuropeft.errors import UserError
from neuropeft.train import checkpoint, loop
from neuropeft.train.pretrain import pretrain
spec, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
now = [0.0]
loop.time = types.SimpleNamespace(monotonic=lambda: now[0])
step, replace = torch.optim.AdamW.step, os.replace

def run(name, before=None):
    child = os.fork()
    if child == 0:
        done = [0]
        def counted(self):
            if before:
                before(done[0], "step")
            step(self)
            done[0] += 1
            now[0] += 1
            (folder / f"{name}.steps").write_text(str(done[0]))
        def replaced(*arguments):
            replace(*arguments)
            if before:
                before(done[0], "save")
        torch.optim.AdamW.step, os.replace = counted, replaced
        split, out, state = folder / "seed-0.tsv", folder / name, folder / f"state-{name}"
        seconds = float(sys.argv[3])
        try:
            if "decoder" in spec:
                pretrain(
                    spec, folder / "store", [split], out, state, device="cpu", checkpoint_seconds=seconds
                )
            else:
                tiny_cells.finetune(spec, folder / "store", split, None, out, state, seconds)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, int((folder / f"{name}.steps").read_text())
"""

KILLED = (
    FORKS
    + """
whole = run("whole")
report = {"whole": whole, "kills": []}
for seed in range(int(sys.argv[4])):
    chance = random.Random(seed)
    last, at = chance.randrange(1, whole[1]), chance.choice(["step", "save"])
    def kill(done, where):
        if done >= last and where == at:
            os.kill(os.getpid(), signal.SIGKILL)
    report["kills"].append([*run(f"run-{seed}", kill), *run(f"run-{seed}")])
print(json.dumps(report))
"""
)


def forked(
    code: str, folder: Path, *arguments: object, around: Sequence[str] = (), spec: dict = SPEC
) -> dict:
    """Run `code`, as an argument of `around`, on a store in `folder`; return what it reports of its forks."""
    tiny_cells.make_split(folder / "seed-0.tsv", tiny_cells.make_store(folder / "store"))
    process = tiny_cells.python(code, arguments=(json.dumps(spec), folder, *arguments), around=around)
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(said) | {"said": errors}


def test_kills_at_random_steps_cost_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    report = forked(KILLED, tmp_path, EVERY, KILLS)
    status, steps = report["whole"]
    assert (status, steps) == (0, 4 * 4)
    assert len({before for _, before, _, _ in report["kills"]}) > 5, "the kills shall come at many steps"
    for seed, (killed, before, finished, after) in enumerate(report["kills"]):
        assert (killed, finished) == (-9, 0)
        assert before + after - steps in range(EVERY + 1), "lost steps"
        assert_same_delta(tmp_path / f"run-{seed}", tmp_path / "whole")


FULL_DISK = (
    FORKS
    + """
state, filler = folder / "state-run", folder / "state-run" / "filler"
def fill(done, where):
    if done == 7 and where == "step":
        with filler.open("wb", buffering=0) as stream:
            try:
                while stream.write(bytes(1024)):
                    pass
            except OSError:
                pass
report = {"whole": run("whole"), "full": run("run", fill)}
identity = checkpoint.torch.load(state / checkpoint.NEWEST, weights_only=True)["fingerprint"]
report["kept"] = checkpoint.load(state, identity)["progress"]["step"]
report["files"] = sorted(path.name for path in state.iterdir())
filler.unlink()
print(json.dumps(report | {"again": run("run")}))
"""
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_said_in_a_line_and_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "state-run").mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path / 'state-run'}"
    report = forked(
        FULL_DISK, tmp_path, EVERY, around=("unshare", "--mount", "sh", "-c", f'{mount} && "$@"', "sh")
    )
    assert report["full"] == [1, 9], "the save after step 9 does not fit"
    newest = tmp_path / "state-run" / checkpoint.NEWEST
    assert (
        f"cannot save the checkpoint {newest}: [Errno 28] No space left on device; free some"
        in report["said"]
    )
    assert report["kept"] == 6, "the step of the last checkpoint that fitted"
    assert report["files"] == [checkpoint.PREVIOUS, checkpoint.NEWEST, "filler"]
    assert report["again"] == [0, report["whole"][1] - 6]
    assert_same_delta(tmp_path / "run", tmp_path / "whole")


ELSEWHERE = (
    FORKS
    + """
import socket
def kill(done, where):
    if done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
report = {"whole": run("whole"), "killed": run("run", kill)}
wall, boot = time.time, time.clock_gettime
time.time = lambda: wall() - 10 * 365 * 86400
time.clock_gettime = lambda clock: boot(clock) - 1e6
now[0] = -5000.0
if os.geteuid() == 0:
    socket.sethostname("another-node")
socket.gethostname = lambda: "another-node"
print(json.dumps(report | {"resumed": run("run")}))
"""
)


@pytest.mark.parametrize("spec", [SPEC, PRETRAINING], ids=["fine-tune", "pretraining"])
def test_another_clock_and_host_name_change_nothing(tmp_path: Path, spec: dict) -> None:
    around = ("unshare", "--uts") if os.geteuid() == 0 else ()
    report = forked(ELSEWHERE, tmp_path, EVERY, around=around, spec=spec)
    assert report["killed"] == [-9, 7]
    assert report["resumed"] == [0, report["whole"][1] - 6]
    if spec is SPEC:
        assert_same_delta(tmp_path / "run", tmp_path / "whole")
        return
    resumed, whole = (read_tensors(tmp_path / run / "encoder.safetensors")[0] for run in ("run", "whole"))
    assert all(resumed[name].equal(whole[name]) for name in whole)


def test_an_encoder_that_was_being_replaced_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, state = tiny_cells.make_store(tmp_path / "store"), tmp_path / "state"

    def train(seed: int) -> None:
        spec = tiny_cells.pretraining(steps=4, seed=seed)
        pretraining.pretrain(spec, store, [], tmp_path / "out", state, device="cpu")

    def die(path: Path, rows: list) -> None:
        raise KeyboardInterrupt  # the new encoder is there, the old cost is too

    train(seed=0)
    assert is_finished(state, files=pretraining.files(pretraining.kind_of({"kind": "mae"})))
    monkeypatch.setattr(pretraining, "write_history", die)
    with pytest.raises(KeyboardInterrupt):
        train(seed=1)
    assert not is_finished(state, files=pretraining.files(pretraining.kind_of({"kind": "mae"})))


def test_a_written_file_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, replace, path = [], os.replace, tmp_path / "table.tsv"
    monkeypatch.setattr(os, "fsync", lambda file: done.append(Path(f"/proc/self/fd/{file}").readlink()))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append(paths), replace(*paths)))
    write_tsv(path, [], ["a"])
    assert done == [partial_path(path), (partial_path(path), path), tmp_path]


def test_what_killed_jobs_left_half_written_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = os.uname().nodename
    gone = [f".partial-{host}-{ended.pid}-a.pt", ".partial-old-1-a.pt", ".partial-1-old.pt"]
    kept = [f".partial-{host}-{os.getpid()}-a.pt", f".partial-{host}-two-{ended.pid}-a.pt", "old.pt"]
    (tmp_path / "finished").mkdir()
    for name in (*gone, *kept):
        path = tmp_path / "finished" / name
        path.touch()
        if "old" in name:
            os.utime(path, (0, 0))
    with lock(tmp_path):
        assert {path.name for path in tmp_path.rglob("*.pt")} == set(kept)


def test_a_verb_that_finds_the_disk_full_says_so_in_a_line(tmp_path: Path, capsys) -> None:
    # What is to become the table is a device that is always full.
    (tmp_path / f".partial-{os.uname().nodename}-{os.getpid()}-participants.tsv").symlink_to("/dev/full")
    spec = Simulated(subjects=4).model_dump_json()
    assert main(["simulate-tables", "--spec", spec, "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("neuropeft simulate-tables: ")
    assert re.search("No space left on device .*; free space and run again", said)
    assert said.count("\n") == 1
