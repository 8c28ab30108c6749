"""What a run costs: the share of a GPU's peak, and what it consumes over all its parts."""

import ctypes
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny_cells
from neuropeft.peaks import peak_of
from neuropeft.train import energy, supervised
from neuropeft.train.cost import share_of_peak

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A40", 150e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A6000", 155e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A40-48Q", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-32GB", None),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_the_whole_gpu_of_this_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_the_share_of_the_peak_is_that_of_the_operations() -> None:
    cost = {"samples_per_second": 1000.0, "flops_per_sample": 98_900_000_000}
    assert share_of_peak({**cost, "device": "NVIDIA H100 80GB HBM3"}) == pytest.approx(0.1)
    assert share_of_peak({**cost, "device": "cpu"}) is None


@pytest.mark.parametrize(("untold", "joules"), [((), 130.0), ((3,), None), ((8,), None)])
def test_an_interrupted_run_adds_up_what_its_parts_consumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untold: tuple[int, ...], joules: float | None
) -> None:
    store = tiny_cells.make_store(tmp_path / "store")
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store)
    reading, steps, augment = count(), count(), supervised.augment

    def read(device: torch.device) -> float | None:
        number = next(reading)
        return None if number in untold else 10.0 * number

    def stopping(*arguments):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return augment(*arguments)

    monkeypatch.setattr(energy, "energy_joule", read)
    monkeypatch.setattr(supervised, "augment", stopping)
    arguments = (tiny_cells.cell(), store, split, None, tmp_path / "out", tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        tiny_cells.finetune(*arguments)
    tiny_cells.finetune(*arguments)
    cost = tiny_cells.read_cost(tmp_path / "out")
    # Five checkpoints, and after the interruption seven and the end; each is 10 J after the reading before.
    assert (cost["steps"], cost["resumed"], cost["energy_joule"]) == (12, 1, joules)


def test_energy_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        failure = 0

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
            asked.append(uuid)
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, to: object) -> int:
            to._obj.value = 12_345_678
            return self.failure

    library = Library()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="8f6a-1"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    energy._handle.cache_clear()
    assert energy.energy_joule(GPU) == 12_345.678
    assert asked == [b"GPU-8f6a-1"]
    library.failure = 3  # NVML_ERROR_NOT_SUPPORTED
    assert energy.energy_joule(GPU) is None
    energy._handle.cache_clear()


def test_energy_is_unknown_without_the_drivers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="8f6a-1"))
    monkeypatch.setattr(energy, "LIBRARY", "libnothing-of-this-name.so")
    energy._handle.cache_clear()
    assert energy.energy_joule(GPU) is None
    energy._handle.cache_clear()
    assert energy.energy_joule(torch.device("cpu")) is None
