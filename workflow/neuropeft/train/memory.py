"""Forward passes whose batches shrink when the memory of the GPU does not suffice."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from neuropeft.errors import UserError

Result = TypeVar("Result")


@dataclass
class BatchSize:
    """How many scans passes without gradients take at once; what did not fit is not tried again."""

    scans: int


def in_batches(compute: Callable[[Tensor], Result], rows: Tensor, size: BatchSize) -> list[Result]:
    """Return `compute(batch)` for the batches of `rows` [n], of `size` scans or, out of memory, of fewer.

    What is computed for a scan must not depend on the other scans of its batch. `size` shrinks to what fits.

    Raises:
        UserError: The memory does not suffice for one scan.
    """
    results: list[Result] = []
    done = 0
    while done < len(rows):
        batch = rows[done : done + size.scans]
        result = _attempt(compute, batch)
        if result is None:
            size.scans = _smaller(len(batch))
        else:
            results.append(result)
            done += len(batch)
    return results


def _attempt(compute: Callable[[Tensor], Result], batch: Tensor) -> Result | None:
    try:
        return compute(batch)
    except torch.OutOfMemoryError:
        return None  # its traceback holds tensors: leave it before memory is asked for again


def _smaller(size: int) -> int:
    torch.cuda.empty_cache()
    if size == 1:
        raise UserError(
            "not even one scan fits into the memory of the GPU; give a GPU with more memory, a smaller "
            "backbone or a smaller preprocessing.size"
        )
    half = -(-size // 2)
    print(f"out of GPU memory with {size} scans at once; going on with {half}", file=sys.stderr, flush=True)
    return half
