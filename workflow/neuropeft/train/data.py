"""The volumes of a run, on the device or in the store's memory map, and the order in which they are seen."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuropeft.train.seeds import derive_seed

ROWS_AT_ONCE = 256  # read from disk in one go: 256 MB of 80^3 voxels
SHARE_OF_FREE_MEMORY = 0.6  # of the GPU, for volumes; activations need the rest


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return `device`, or the current GPU if there is one, or the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if (gpus := os.environ.get("CUDA_VISIBLE_DEVICES", "-1")) not in ("", "-1"):  # two ways to hide them
        print(
            f"GPU {gpus} is for this job, but PyTorch {torch.__version__} finds none and takes the CPU: "
            "install its CUDA build, renew the driver, or start the container with --nv",
            file=sys.stderr,
            flush=True,
        )
    return torch.device("cpu")


def generator(device: torch.device, seed: int, *purpose: object) -> torch.Generator:
    """Return a generator on `device`, seeded for one `purpose`; see `derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *purpose))


@lru_cache(maxsize=4)
def pass_order(samples: int, seed: int, number: int) -> Tensor:
    """Return the permutation [samples] of one pass over the scans, on the CPU.

    It depends on nothing but the arguments, so a resumed run, another device or another number of processes
    sees the same order.
    """
    return torch.randperm(samples, generator=generator(torch.device("cpu"), seed, "order", number))


def batch_rows(samples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the scans [batch_size] of a step, counted from 0.

    Batches are cut from passes that follow one another without a gap, so that all have the same size and
    every scan is seen equally often, however few there are.
    """
    start = step * batch_size
    first, last = start // samples, (start + batch_size - 1) // samples
    stream = torch.cat([pass_order(samples, seed, number) for number in range(first, last + 1)])
    return stream[start - first * samples :][:batch_size]


@dataclass(frozen=True)
class Volumes:
    """The volumes of a run, and the device that batches are wanted on.

    Attributes:
        data: float16 [N, channels, *size] or label maps, uint8 [N, *size], as stored: on `device`, or the
            memory map of the store.
        device: Where batches are wanted.
        index: Row of `data` of each volume, [n] on the CPU, for a map; None if `data` has just the volumes.
    """

    data: Tensor
    device: torch.device
    index: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.data if self.index is None else self.index)

    @property
    def bytes_each(self) -> int:
        """Bytes that a volume takes in memory."""
        return self.data[:1].nbytes

    @property
    def on_device(self) -> bool:
        """Whether they are where batches are wanted, so that no batch is copied to the GPU."""
        return self.data.device.type == self.device.type

    def take(self, rows: Tensor) -> Tensor:
        """Return the volumes `rows` [B] as stored, float16 [B, channels, *size], on the device."""
        if self.on_device:
            rows = rows.to(self.data.device, non_blocking=True)
            # Not data[rows], which takes twice as long on the CPU.
            return self.data.index_select(0, rows if self.index is None else self.index[rows])
        rows = rows.cpu() if self.index is None else self.index[rows.cpu()]
        # Pinned, so that the copy to the GPU needs no wait; torch keeps the memory until the copy is done.
        batch = torch.empty(
            (len(rows), *self.data.shape[1:]), dtype=self.data.dtype, pin_memory=self.device.type == "cuda"
        )
        torch.index_select(self.data, 0, rows, out=batch)
        return batch.to(self.device, non_blocking=True)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the volumes `rows` [B] as float32 [B, channels, *size] on the device."""
        return as_input(self.take(rows))


def as_input(stored: Tensor) -> Tensor:
    """Return stored volumes, float16, as networks take them: float32."""
    return stored.float()


def load_volumes(source: NDArray[Any], rows: Sequence[int], device: torch.device) -> Volumes:
    """Return `rows` of a store's volumes or label maps, in this order, for batches on `device`.

    A GPU that has room for them gets a copy. Otherwise, and on the CPU, nothing is copied: batches are taken
    from `source`, a memory map, whose pages all processes of a node share. A line on stderr says so of a GPU.
    They stay as stored; of volumes that is float16: half the memory of float32 and nothing lost.
    """
    index = np.asarray(rows, dtype=np.int64)
    shape = (len(rows), *source.shape[1:])
    if device.type == "cpu" or not _fits(shape, device):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
            return Volumes(torch.from_numpy(source), device, torch.from_numpy(index))
    data = torch.empty(shape, dtype=torch.from_numpy(source[:0].copy()).dtype, device=device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        data[part].copy_(torch.from_numpy(np.asarray(source[index[part]])))
    return Volumes(data, device)


def _fits(shape: Sequence[int], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    needed = 2 * int(np.prod(shape, dtype=np.int64))
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= SHARE_OF_FREE_MEMORY * free:
        return True
    print(
        f"{shape[0]} volumes need {needed / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free: "
        "they stay in main memory and each batch is copied, which is slower",
        file=sys.stderr,
        flush=True,
    )
    return False
