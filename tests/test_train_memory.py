"""A batch that does not fit into the memory of the GPU is gone through in parts, with the same result."""

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny_cells
from neuropeft.backbones.checkpoints import read_tensors
from neuropeft.backbones.vit import ViT3D
from neuropeft.errors import UserError
from neuropeft.pretraining.mae3d import MAE3D
from neuropeft.train import checkpoint, loop
from neuropeft.train.checkpoint import StateFolder
from neuropeft.train.learner import Batch, Learner, Plan
from neuropeft.train.lock import LOCK
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.predict import predict
from neuropeft.train.pretrain import pretrain
from neuropeft.train.ranks import Ranks
from neuropeft.train.state import FINISHED

NOTHING = Learner(
    nn.Identity(), lambda rows, step: rows, lambda _: 1 / 0, lambda: {"val_loss": 1.0}, dict, dict
)


@contextmanager
def room_for(
    scans: int, network: type[nn.Module], backward: bool = False, training: bool = False
) -> Iterator[dict[bool, list[int]]]:
    """Let passes of `network` over more than `scans` run out of memory, if `training` those with gradients.

    Yield the sizes that were tried without and with gradients.
    """
    name = "tokens" if network is ViT3D else "forward"
    forward, tried = getattr(network, name), {False: [], True: []}

    def limited(self: nn.Module, x: Tensor, *rest: Tensor) -> object:
        tried[torch.is_grad_enabled()].append(len(x))
        result = forward(self, x, *rest)
        if len(x) > scans and (torch.is_grad_enabled() or not training):
            if not (backward and self.training):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            result.error.register_hook(fail)
        return result

    def fail(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, name, limited)
        yield tried


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tiny_cells.make_store(tmp_path / "store")
    tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    return store


def tune(store: Path, spec: dict, name: str, seconds: float = 1e9) -> Path:
    folder = store.parent
    tiny_cells.finetune(
        spec, store, folder / "seed-0.tsv", None, folder / name, folder / "state", checkpoint_seconds=seconds
    )
    return folder / name


def assert_alike(one: Path, other: Path, file: str) -> None:
    """Hold losses and weights equal but for rounding."""
    for a, b in zip(tiny_cells.read_history(one), tiny_cells.read_history(other), strict=True):
        for key in a.keys() - {"accumulation"}:
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4), key
    first, second = (read_tensors(folder / file)[0] for folder in (one, other))
    # Softmax does not see the bias of the keys: its gradient is rounding, from which Adam makes whole steps.
    for name in (name for name in first if not name.endswith("qkv.bias")):
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("room", "parts"), [(3, 2), (2, 4), (1, 8)])
def test_a_fine_tune_in_parts_ends_as_one_in_whole_batches(
    store: Path, room: int, parts: int, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuropeft.train.finetune.training_flops", lambda *_: 0)  # takes room for two scans
    spec = tiny_cells.cell(training={"batch_size": 6})
    whole = tune(store, spec, "whole")
    with room_for(room, ViT3D) as tried:
        cut = tune(store, spec, "cut")
    assert_alike(whole, cut, "delta.safetensors")
    assert tiny_cells.read_cost(whole)["accumulation"] == 1
    assert tiny_cells.read_cost(cut)["accumulation"] == parts
    assert {row["accumulation"] for row in tiny_cells.read_history(cut)} == {str(parts)}
    for sizes in tried.values():
        assert sum(size > room for size in sizes) == math.log2(parts), "what did not fit is not tried again"
    said = capsys.readouterr().err
    assert f"{spec['cell']}: out of GPU memory with 6 scans at once; from here on the gradients of 2" in said
    assert f"gradients of {parts} parts of a batch are added up: batches stay 6 scans" in said


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_pretraining_in_parts_ends_as_one_in_whole_batches(
    store: Path, normalize: bool, backward: bool
) -> None:
    # A third of the scans is half background, which is not scored where no noise is added, and seven scans
    # make uneven parts: the parts weigh unequally.
    spec = tiny_cells.pretraining(normalize_targets=normalize, augment={"flip": True}, batch_size=7)
    folder = store.parent
    pretrain(spec, store, [], folder / "whole", folder / "state-whole", device="cpu")
    with room_for(3, MAE3D, backward):
        pretrain(spec, store, [], folder / "cut", folder / "state-cut", device="cpu")
    assert_alike(folder / "whole", folder / "cut", "encoder.safetensors")
    assert tiny_cells.read_cost(folder / "cut")["accumulation"] == 4


def test_a_resumed_run_keeps_its_parts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_cells.cell()
    whole = tune(store, spec, "whole")
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: save(*arguments) or 1 / 0)
    with room_for(3, ViT3D), pytest.raises(ZeroDivisionError):
        tune(store, spec, "cut", seconds=0)
    monkeypatch.undo()
    with room_for(3, ViT3D) as tried:
        cut = tune(store, spec, "cut")
    assert tiny_cells.read_cost(cut)["resumed"] == 1
    assert tiny_cells.read_cost(cut)["accumulation"] == 2
    assert tried[True][0] <= 3
    assert_alike(whole, cut, "delta.safetensors")


def test_what_does_not_fit_at_all_is_said_with_a_remedy(store: Path) -> None:
    spec = tiny_cells.cell()
    message = f"{spec['cell']}: not even one scan at a time fits into the memory of cpu; give a GPU with more"
    with room_for(0, ViT3D, training=True), pytest.raises(UserError, match=message):
        tune(store, spec, "out")
    with pytest.raises(UserError, match="not even one scan fits"):
        in_batches(out_of_memory_above(0), torch.arange(3), BatchSize(2))


def out_of_memory_above(room: int) -> Callable[[Tensor], Tensor]:
    def compute(rows: Tensor) -> Tensor:
        if len(rows) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return rows * 10

    return compute


def test_batches_without_gradients_shrink(capsys) -> None:
    size = BatchSize(8)
    results = in_batches(out_of_memory_above(2), torch.arange(11), size)
    assert size.scans == 2
    assert torch.cat(results).tolist() == list(range(0, 110, 10))
    assert max(map(len, results)) == 2
    assert "out of GPU memory with 8 scans at once; going on with 4" in capsys.readouterr().err


def test_predictions_are_the_same_in_smaller_batches(store: Path) -> None:
    out = tune(store, tiny_cells.cell(method={"kind": "full"}), "out")  # random weights, all in the delta
    arguments = [out / "delta.safetensors"], [], store, [store.parent / "seed-0.tsv"]
    predict(*arguments, store.parent / "whole.tsv", "cpu")
    with room_for(2, ViT3D):
        predict(*arguments, store.parent / "cut.tsv", "cpu")
    scores = [
        [float(line.rpartition("\t")[2]) for line in (store.parent / name).read_text().splitlines()[1:]]
        for name in ("whole.tsv", "cut.tsv")
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


FORKED = """
import json, os, sys, torch, torch._dynamo, tiny_cells
from neuropeft.cli import main
from neuropeft.pretraining.mae3d import MAE3D
forward = MAE3D.forward
def limited(self, x, *rest):
    if len(x) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return forward(self, x, *rest)
MAE3D.forward = limited
store, out, state, port = sys.argv[1:]
spec = json.dumps(tiny_cells.pretraining(steps=4))
def fork(rank):
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os._exit(main(["pretrain", "--spec", spec, "--store", store, "--out", out, "--state", state]))
for _ in range(2):
    children = [fork(rank) for rank in range(2)]
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.mark.slow
def test_processes_that_share_a_batch_start_again_with_more_parts(store: Path) -> None:
    folder = store.parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = folder / "state"
    process = tiny_cells.python(FORKED, arguments=(store, folder / "cut", state, port))
    statuses, said = process.communicate(timeout=120)
    assert statuses == "[1, 1]\n[0, 0]\n", said
    assert "out of GPU memory with 4 scans at once; start again, then each process goes through" in said
    assert tiny_cells.read_cost(folder / "cut")["accumulation"] == 2
    assert {path.name for path in state.iterdir()} == {FINISHED, LOCK}, "note and checkpoint are done with"
    pretrain(tiny_cells.pretraining(steps=4), store, [], folder / "whole", folder / "alone", device="cpu")
    assert_alike(folder / "whole", folder / "cut", "encoder.safetensors")


def test_a_note_of_another_run_does_not_count(tmp_path: Path) -> None:
    run, other = (StateFolder(tmp_path, name, {}) for name in ("run", "another"))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])

    def parts(state: StateFolder) -> int:
        return checkpoint.resume(state, "a/cell", NOTHING, optimizer, Ranks()).parts

    assert parts(run) == 1
    checkpoint.note_parts(run, 4)
    assert parts(run) == 4
    assert parts(other) == 1


def test_batch_norms_inside_a_backbone_are_mentioned(tmp_path: Path, capsys) -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm3d(1))

    def loss(batch: Batch) -> tuple[Tensor, int]:
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return module[0].weight.sum(), 1

    learner = replace(NOTHING, module=module, loss=loss)
    plan = Plan("a/cell", 4, steps=1, interval=1, batch_size=4, warmup_steps=0, clip=1.0, seed=0, lr=0.01)
    groups = [{"params": [module[0].weight], "lr": 0.01, "weight_decay": 0.0}]
    loop.fit(learner, groups, plan, StateFolder(tmp_path, "f", {}), torch.device("cpu"))
    assert "the backbone's batch norms see one part at a time" in capsys.readouterr().err
