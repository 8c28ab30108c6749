"""Loading batches ahead, while the one before is trained on, of volumes that the GPU has no room for."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, count, islice

import torch
from torch import Tensor

from neuropeft.train.data import Volumes, batch_rows
from neuropeft.train.ranks import ALONE, Ranks

DEPTH = 2  # batches ahead: one that waits on the GPU, and one that is being loaded
_Loaded = tuple[Tensor, Tensor, torch.cuda.Event | None]


def prefetch(
    volumes: Volumes, batches: Iterable[Tensor], depth: int = DEPTH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows [B], their volumes as `Volumes.take` gives them), batch by batch, in order.

    A thread loads up to `depth` batches ahead, on a GPU in a stream of its own. It ends with the iterator:
    after the last batch, after an error, or when the iterator is closed or dropped.

    `batches` are rows of `volumes`, on the CPU.

    Raises:
        Exception: What loading a batch raised, in place of that batch.
    """
    stream = torch.cuda.Stream(volumes.device) if volumes.device.type == "cuda" else None
    waiting, loading = iter(batches), deque[Future[_Loaded]]()
    pool = ThreadPoolExecutor(1, "prefetch", _use_device, (stream,))
    try:
        loading.extend(pool.submit(_load, volumes, rows, stream) for rows in islice(waiting, depth))
        while loading:
            rows, batch, loaded = loading.popleft().result()
            loading.extend(pool.submit(_load, volumes, rows, stream) for rows in islice(waiting, 1))
            if loaded is not None:
                current = torch.cuda.current_stream(volumes.device)
                current.wait_event(loaded)
                batch.record_stream(current)  # or its memory could be given away while it is read
            yield rows, batch
    finally:
        pool.shutdown(cancel_futures=True)


def _use_device(stream: torch.cuda.Stream | None) -> None:
    # A thread begins with the first GPU, which may be that of another process.
    if stream is not None:
        torch.cuda.set_device(stream.device)


def _load(volumes: Volumes, rows: Tensor, stream: torch.cuda.Stream | None) -> _Loaded:
    if stream is None:
        return rows, volumes.take(rows), None
    with torch.cuda.stream(stream):
        batch = volumes.take(rows)
        return rows, batch, stream.record_event()


class TrainingBatches:
    """The volumes of a training's batches, loaded ahead where they are not on the device."""

    def __init__(
        self, volumes: Volumes, places: Tensor, batch_size: int, seed: int, ranks: Ranks = ALONE
    ) -> None:
        """Load nothing yet.

        `places` is the row of `volumes` of each training scan, [scans], on the device of `volumes.data`. A
        batch, of all `ranks` together, follows from `seed` (`batch_rows`).
        """
        self.volumes, self.places, self.batch_size = volumes, places, batch_size
        self.seed, self.ranks = seed, ranks
        self._ahead: Iterator[tuple[Tensor, Tensor]] = iter(())

    def get(self, rows: Tensor, step: int) -> Tensor:
        """Return this process's part of the volumes of a batch, float16 [b, S, S, S], on the device.

        `rows` are the training scans of the batch, [B] on the CPU.
        """
        wanted = _own(self.places, self.ranks, rows)
        if self.volumes.on_device:
            return self.volumes.take(wanted)
        for found, batch in self._ahead:
            if torch.equal(found, wanted):
                return batch
            break
        # The first batch of a run, or one that is tried again in smaller parts.
        self._ahead = prefetch(self.volumes, chain([wanted], self._following(step)))
        return next(self._ahead)[1]

    def _following(self, step: int) -> Iterator[Tensor]:
        """Return the places of this process's part of the batches after `step`, without end."""
        # It does not hold `self`, which holds it: the thread ends as soon as nobody holds `self`.
        places, ranks, size, seed = self.places, self.ranks, self.batch_size, self.seed
        return (_own(places, ranks, batch_rows(len(places), size, seed, later)) for later in count(step + 1))


def _own(places: Tensor, ranks: Ranks, rows: Tensor) -> Tensor:
    return places[rows[ranks.share(len(rows))].to(places.device, non_blocking=True)]
