"""Processes that share each batch follow the loss curve of one process."""

import itertools
from pathlib import Path

import pytest
import torch

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.train.pretrain import pretrain
from neuropeft.train.ranks import Ranks

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SCRIPT = """
import sys, tiny_cells
from neuropeft.train.pretrain import pretrain
pretrain(tiny_cells.pretraining(), sys.argv[1], [], sys.argv[2], sys.argv[3], device="cpu")
"""


def launched(folder: Path, store: Path, processes: int) -> Path:
    """Pretrain with torchrun over gloo."""
    script, out = folder / "script.py", folder / f"out-{processes}"
    script.write_text(SCRIPT)
    launcher = [*TORCHRUN, str(processes), str(script)]
    process = tiny_cells.python(str(folder / f"state-{processes}"), *launcher, str(store), str(out))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    # 19 training scans in batches of 8: uneven parts; scans differ in how many patches are background.
    store = tiny_cells.make_store(tmp_path / "store")
    one, two = tmp_path / "out-1", launched(tmp_path, store, 2)
    pretrain(tiny_cells.pretraining(), store, [], one, tmp_path / "state-1", device="cpu")
    for a, b in zip(tiny_cells.read_history(one), tiny_cells.read_history(two), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-5), key
    assert tiny_cells.read_cost(two)["processes"] == 2
    weights = [read_tensors(folder / "encoder.safetensors")[0] for folder in (one, two)]
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-4), name


GATHER = """
import pickle, sys, torch
from pathlib import Path
from neuropeft.train.ranks import join
class Code:
    def __reduce__(self):
        return print, ("it has run",)
team, _ = join()
values = team.gather({"name": [team.rank], "numbers": torch.arange(3 + 50 * team.rank)})
assert [(value["name"], len(value["numbers"])) for value in values] == [([0], 3), ([1], 53)]
team.wait()
try:
    team.gather(Code())
except pickle.UnpicklingError:
    Path(sys.argv[1], f"refused-{team.rank}").touch()
"""


def test_processes_exchange_values_and_run_nothing_that_was_sent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(GATHER)
    process = tiny_cells.python(str(tmp_path / "script.py"), *TORCHRUN, "2", arguments=[tmp_path])
    said, errors = process.communicate(timeout=120)
    assert {path.name for path in tmp_path.glob("refused-*")} == {"refused-0", "refused-1"}, errors
    assert not said


def test_parts_of_a_batch_tile_it() -> None:
    for size, cut, total in itertools.product((1, 2, 3, 8), (1, 2, 3), (1, 5, 8, 19)):
        parts = [Ranks(rank, size).share(total, part, cut) for rank in range(size) for part in range(cut)]
        assert [i for part in parts for i in range(total)[part]] == list(range(total))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_alone_nothing_is_sent() -> None:
    alone = Ranks()
    assert alone.first
    assert alone.any(True, False) == [True, False]
    assert float(alone.sum(torch.tensor(3.0))) == 3
    assert alone.gather("x") == ["x"]
