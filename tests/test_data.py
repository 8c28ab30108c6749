import re
from pathlib import Path

import numpy as np
import pytest
import torch

from neuropeft.train import data
from neuropeft.train.data import Volumes, batch_rows, derive_seed, load_volumes, pass_order

CPU = torch.device("cpu")


def test_order_is_a_permutation_and_a_function_of_seed_and_pass() -> None:
    order = pass_order(50, seed=3, number=7)
    assert sorted(order.tolist()) == list(range(50))
    torch.rand(5)  # other draws must not matter
    assert torch.equal(order, pass_order(50, 3, 7))
    assert not torch.equal(order, pass_order(50, 3, 8))
    assert not torch.equal(order, pass_order(50, 4, 7))


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (10, 5), (3, 8), (1, 4), (16, 16)])
def test_batches_are_cut_from_passes_that_follow_one_another(samples: int, batch_size: int) -> None:
    batches = [batch_rows(samples, batch_size, seed=2, step=step) for step in range(2 * samples)]
    assert {tuple(batch.shape) for batch in batches} == {(batch_size,)}
    passes = [pass_order(samples, 2, number) for number in range(2 * batch_size)]
    assert torch.equal(torch.cat(batches), torch.cat(passes))


def test_seeds_differ_by_purpose() -> None:
    seeds = {
        derive_seed(0, "order", 1),
        derive_seed(0, "order", 2),
        derive_seed(0, "mask", 1),
        derive_seed(1),
    }
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_volumes_are_read_in_the_asked_order() -> None:
    source = np.arange(6 * 8, dtype=np.float16).reshape(6, 1, 2, 2, 2)
    volumes = load_volumes(source, [4, 0, 5, 0, 2], CPU)
    assert len(volumes) == 5
    assert volumes.data.dtype == torch.float16
    assert volumes.bytes_each == 16
    # Where it computes: of the devices, only this one is not the CPU everywhere.
    assert load_volumes(source, [4], torch.device("meta")).data.is_meta
    batch = volumes.batch(torch.tensor([2, 1]))
    assert batch.shape == (2, 1, 2, 2, 2)
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), source[[5, 0]].astype(np.float32))


def test_volumes_that_do_not_fit_stay_in_main_memory(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    gpu, free = torch.device("cuda", 0), [100]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 2000))
    source = np.ones((40, 2, 2, 2), dtype=np.float16)  # 640 bytes
    volumes = load_volumes(source, range(40), gpu)
    assert volumes.data.device == CPU
    assert not volumes.on_device
    assert "stay in main memory" in capsys.readouterr().err
    free[0] = 1100  # of which volumes may take 660
    assert data._fits(source.shape, gpu)
    free[0] = 1000
    assert not data._fits(source.shape, gpu)


def test_volumes_that_stay_in_main_memory_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(data, "_fits", lambda shape, device: False)
    np.save(tmp_path / "volumes.npy", np.ones((400, 40, 40, 40), dtype=np.float16))  # 51 MB
    before = private_bytes()
    for device in (CPU, torch.device("cuda", 0)):
        source = np.load(tmp_path / "volumes.npy", mmap_mode="r")
        volumes = load_volumes(source, range(399), device)
        assert volumes.data.data_ptr() == source.ctypes.data
        assert volumes.data.index_select(0, torch.arange(4)).sum() == 4 * 40**3
    assert private_bytes() - before < 20e6
    assert not recwarn.list


def private_bytes() -> int:
    """Memory of this process that no file is behind and no other process shares."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


@pytest.mark.parametrize(("given", "told"), [("0,1", True), ("-1", False), ("", False)])
def test_a_gpu_that_torch_does_not_find_is_told(monkeypatch, capsys, given: str, told: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert data.pick_device() == CPU
    assert ("GPU 0,1 is for this job, but PyTorch" in capsys.readouterr().err) == told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_from_main_memory_equal_those_from_the_gpu() -> None:
    gpu = torch.device("cuda", 0)
    source = torch.randn(6, 1, 4, 4, 4).half()
    rows = torch.tensor([3, 1], device=gpu)
    resident, host = Volumes(source.to(gpu), gpu), Volumes(source, gpu)
    assert torch.equal(resident.batch(rows), host.batch(rows))
