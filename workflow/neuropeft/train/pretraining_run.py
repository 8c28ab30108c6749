"""What the kinds of pretraining share: the run they train in, and how they look at what was learnt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuropeft.backbones.vit import ViT3D
from neuropeft.train.augment import Augmentation, augment
from neuropeft.train.data import Volumes, as_input, generator
from neuropeft.train.diagnose import LARGEST, Targets, participation_ratio, probe
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.ranks import Ranks


@dataclass(frozen=True)
class Run:
    """A pretraining on this process.

    Attributes:
        spec: Its settings.
        model: The network that is trained; its `encoder` is what stays.
        volumes: Scans, of which the first `train` are trained on.
        rows: Their rows in the store's scans.tsv, in the same order.
        train: Scans to train on.
        ranks: This process among those that share the training.
        store: Folder of the store that they are from.
        known: What is known of the scans and probed for, never trained on: {name: a value each}.
    """

    spec: Mapping[str, Any]
    model: nn.Module
    volumes: Volumes
    rows: Sequence[Mapping[str, str]]
    train: int
    ranks: Ranks
    store: Path
    known: Targets

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.spec["seed"])

    @cached_property
    def _batches(self) -> TrainingBatches:
        places = torch.arange(self.train, device=self.volumes.data.device)
        return TrainingBatches(self.volumes, places, int(self.spec["batch_size"]), self.seed, self.ranks)

    @property
    def validation(self) -> int:
        """Scans to validate on."""
        return len(self.volumes) - self.train

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.volumes.device

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes: bfloat16 on a GPU, if the settings say so."""
        enabled = self.spec["mixed_precision"] and self.device.type == "cuda"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def noise(self, size: int, width: int, *purpose: object) -> Tensor:
        """Return uniform random numbers [size, width] for one purpose, the same in all processes."""
        return torch.rand(
            size, width, generator=generator(self.device, self.seed, *purpose), device=self.device
        )

    def pieces(
        self, rows: Tensor, step: int, parts: int, changes: Augmentation
    ) -> Iterator[tuple[slice, Tensor]]:
        """Cut a batch into this process's parts.

        Args:
            rows: Scans of the whole batch.
            step: Step of the run.
            parts: Parts that this process cuts its share into.
            changes: What to change at random.

        Yields:
            Where in the batch a part lies, and its volumes [B, 1, S, S, S], changed.
        """
        stored, start = self._batches.get(rows, step), self.ranks.share(len(rows)).start
        for place in (self.ranks.share(len(rows), part, parts) for part in range(parts)):
            volumes = as_input(stored[place.start - start : place.stop - start])
            yield place, augment(volumes, changes, self.seed, step, place.start, len(rows))


def means_over_validation(run: Run, size: BatchSize, summed: Callable[[Tensor], Tensor]) -> list[float]:
    """Return means over all validation scans, shared by the processes.

    Args:
        run: The pretraining.
        size: Scans at once.
        summed: (places [B] among the validation scans) -> sums, and at the end over how many they are.
    """
    part = run.ranks.share(run.validation)
    places = torch.arange(part.start, part.stop, device=run.device)
    # A process may have no scan of its own; one of the others' then says how many sums there are.
    sums = in_batches(summed, places, size) or [torch.zeros_like(summed(places.new_zeros(1)))]
    *values, number = run.ranks.sum(torch.stack(sums).sum(dim=0)).tolist()
    return [value / max(number, 1) for value in values]


def look(run: Run, size: BatchSize) -> dict[str, float]:
    """Return the participation ratio of the encoder's mean-pooled features and its probes, see `diagnose`.

    Every process looks at the same scans, the first one of each subject and `LARGEST` at most.
    """
    places = _first_scans(run.rows)[:LARGEST]

    def pooled(rows: Tensor) -> Tensor:
        with run.autocast():
            return encoder(run.volumes.batch(rows)).float()

    encoder: ViT3D = run.model.encoder  # type: ignore[assignment]
    features = torch.cat(in_batches(pooled, torch.tensor(places, device=run.device), size)).cpu()
    known = {name: [values[place] for place in places] for name, values in run.known.items()}
    return {"participation_ratio": participation_ratio(features), **probe(features.double().numpy(), known)}


def _first_scans(rows: Sequence[Mapping[str, str]]) -> list[int]:
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row["subject"], place)
    return list(first.values())
