"""Volumes on the device, and the order in which they are seen."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a seed for one `purpose` (such as "order", epoch); other purposes get unrelated seeds."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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

    Batches are cut from passes that follow one another without a gap, so that all have the same size and every
    scan is seen equally often, however few there are.
    """
    start = step * batch_size
    first, last = start // samples, (start + batch_size - 1) // samples
    stream = torch.cat([pass_order(samples, seed, number) for number in range(first, last + 1)])
    return stream[start - first * samples :][:batch_size]


@dataclass(frozen=True)
class Volumes:
    """The volumes of a run, [n, S, S, S] float16 as on disk, and the device that batches are wanted on."""

    data: Tensor
    device: torch.device

    def __len__(self) -> int:
        """Return the number of volumes."""
        return self.data.shape[0]

    @property
    def bytes_each(self) -> int:
        """Bytes that a volume takes in memory."""
        return self.data[:1].nbytes

    @property
    def on_device(self) -> bool:
        """Whether they are where batches are wanted, and not in main memory for want of room."""
        return self.data.device.type == self.device.type

    def batch(self, rows: Tensor) -> Tensor:
        """Return the volumes `rows` [B] as float32 [B, 1, S, S, S] on the device."""
        if not self.on_device:
            # Pinned, and with `rows` on the CPU, gathering and copying run beside the batch before.
            return self.data[rows.cpu()].pin_memory().to(self.device, non_blocking=True).float().unsqueeze(1)
        return self.data[rows.to(self.device, non_blocking=True)].float().unsqueeze(1)


def load_volumes(source: NDArray[np.float16], rows: Sequence[int], device: torch.device) -> Volumes:
    """Read `rows` of a store's volumes [scans, S, S, S], in this order, onto `device`.

    They stay float16, as stored: half the memory of float32 and nothing lost. Volumes that would fill the
    GPU stay in main memory, from which each batch is copied; a line on stderr says so.
    """
    shape = (len(rows), *source.shape[1:])
    home = device if _fits(shape, device) else torch.device("cpu")
    data = torch.empty(shape, dtype=torch.float16, device=home)
    index = np.asarray(rows, dtype=np.int64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        data[part].copy_(torch.from_numpy(np.asarray(source[index[part]], dtype=np.float16)))
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
