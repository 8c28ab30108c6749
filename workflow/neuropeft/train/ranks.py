"""The processes that share a pretraining, as torchrun starts them; one process is the plain case."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Ranks:
    """This process among `size`. `control` is a group of CPU messages, which never wait for a GPU."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, total: int, part: int = 0, parts: int = 1) -> slice:
        """Return what of a batch of `total` is this process's, or `part` of the `parts` that it is cut into.

        All parts of all processes differ by one scan at most.
        """
        place, pieces = self.rank * parts + part, self.size * parts
        return slice(place * total // pieces, (place + 1) * total // pieces)

    def largest_share(self, total: int) -> int:
        """Return how many scans of a batch of `total` the process has that has the most."""
        return -(-total // self.size)

    def any(self, *flags: bool) -> list[bool]:
        """Return, flag by flag, whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        import torch.distributed as dist

        agreed = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in agreed]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, in each of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: object) -> list[Any]:
        """Return the values of all processes, by rank, in each of them; what a checkpoint may hold.

        Bytes are exchanged and read as a checkpoint is, which runs no code that another process has sent.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        stream = BytesIO()
        torch.save(value, stream)
        own = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(own)
        dist.all_reduce(sizes, group=self.control)
        parts = [torch.zeros(int(sizes.max()), dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, functional.pad(own, (0, len(parts[0]) - len(own))), group=self.control)
        return [
            torch.load(BytesIO(part[:size].numpy().tobytes()), weights_only=True)
            for part, size in zip(parts, sizes.tolist(), strict=True)
        ]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)


ALONE = Ranks()


def join() -> tuple[Ranks, torch.device | None]:
    """Join the processes that torchrun started; return this one's place and its GPU, None on the CPU."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, None
    import torch.distributed as dist

    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device is None else "nccl", device_id=device)
    # Not the usual half hour: one process may wait for another training's lock, and all others for it.
    control = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    return Ranks(dist.get_rank(), size, control), device


def leave(ranks: Ranks) -> None:
    """Part from the other processes."""
    if ranks.size > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def distributed(module: torch.nn.Module, ranks: Ranks, device: torch.device) -> torch.nn.Module:
    """Return `module` such that its backward pass averages gradients over the processes."""
    if ranks.size == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    ids: Sequence[torch.device] | None = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False)
