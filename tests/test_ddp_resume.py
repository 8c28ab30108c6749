"""Processes that share a pretraining stop together, go on exactly, and agree on what is finished."""

import json
import math
from pathlib import Path

import pytest

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.train.signals import REQUEUE_EXIT_CODE
from test_resume import PRETRAINING

# One process imports torch and forks pairs, as torchrun would start them. What one waits for in vain ends it.
PAIRS = """
import json, os, signal, socket, sys
from pathlib import Path
import tiny_cells
import torch, torch._dynamo, torch.nn.parallel  # once, and not in each fork
from neuropeft.errors import UserError
from neuropeft.train.pretrain import pretrain
folder, step = Path(sys.argv[1]), torch.optim.AdamW.step

def one(rank, port, spec, name, told):
    signal.alarm(60)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    steps = []
    def counted(self):
        steps.append(self)
        if rank == 1 and len(steps) == told:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(self)
    torch.optim.AdamW.step = counted
    try:
        state = folder / f"state-{name}"
        pretrain(spec, folder / "store", [], folder / name, state, device="cpu", checkpoint_seconds=1e9)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    except SystemExit as left:
        os._exit(left.code)
    os._exit(0)

def pair(spec, name, told=None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            one(rank, port, spec, name, told)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

spec = json.loads(sys.argv[2])
print(json.dumps({
    "stopped": pair(spec, "run", told=5),
    "state": sorted(os.listdir(folder / "state-run")),
    "resumed": pair(spec, "run"),
    "whole": pair(spec, "whole"),
    "again": pair(spec, "whole"),
    "refused": pair(spec | {"batch_size": 1}, "small"),
}))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """How the pairs ended and what they said, and where their results are.

    Each process draws its own random numbers, for stochastic depth. The signal comes in the fifth of nine
    steps, and to one of the two alone.
    """
    folder = tmp_path_factory.mktemp("pairs")
    tiny_cells.make_store(folder / "store")
    process = tiny_cells.python(PAIRS, arguments=(folder, json.dumps(PRETRAINING)))
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(said) | {"said": errors}, folder


def test_a_signal_to_one_stops_both_which_go_on_exactly(ran: tuple[dict, Path]) -> None:
    report, folder = ran
    assert report["stopped"] == [REQUEUE_EXIT_CODE] * 2
    assert "checkpoint.pt" in report["state"]
    assert (report["resumed"], report["whole"]) == ([0, 0], [0, 0])
    resumed, whole = (read_tensors(folder / name / "encoder.safetensors")[0] for name in ("run", "whole"))
    assert all(resumed[name].equal(whole[name]) for name in whole)
    histories = [tiny_cells.read_history(folder / name) for name in ("run", "whole")]
    for one, other in zip(*histories, strict=True):
        assert all(math.isclose(float(one[key]), float(other[key]), rel_tol=1e-6) for key in other), (
            one,
            other,
        )


def test_what_is_finished_is_trained_again_by_neither(ran: tuple[dict, Path]) -> None:
    report, _ = ran
    assert report["again"] == [0, 0]


def test_a_batch_of_fewer_scans_than_processes_is_refused(ran: tuple[dict, Path]) -> None:
    report, _ = ran
    assert report["refused"] == [1, 1]
    assert "batch_size 1 is less than 2 processes; give a larger one" in report["said"]
