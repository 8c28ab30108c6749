"""A pretraining on this process: what its kind is given, and what the loop trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.pretraining.base import Noise, Pretraining
from neuropeft.train import ranks
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.data import Volumes, as_input, generator, pass_order
from neuropeft.train.diagnose import LARGEST, Targets, participation_ratio, probe
from neuropeft.train.learner import Batch, Learner
from neuropeft.train.memory import BatchSize, Result, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.ranks import Ranks


@dataclass(frozen=True)
class Run:
    """What a pretraining on this process is trained on."""

    spec: Mapping[str, Any]  # its settings
    volumes: Volumes  # scans, of which the first `train` are trained on
    rows: Sequence[Mapping[str, str]]  # their rows in the store's scans.tsv, in the same order
    train: int  # scans to train on
    ranks: Ranks  # this process among those that share the training
    store: Path  # folder of the store that they are from
    known: Targets  # what is known of the scans and probed for, never trained on: {name: a value each}

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.spec["seed"])

    @property
    def validation(self) -> int:
        """Scans to validate on."""
        return len(self.volumes) - self.train

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.volumes.device

    @cached_property
    def _at_once(self) -> BatchSize:
        return BatchSize(int(self.spec["batch_size"]))

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes: bfloat16 on a GPU, if the settings say so."""
        enabled = self.spec["mixed_precision"] and self.device.type == "cuda"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def in_batches(self, compute: Callable[[Tensor], Result], rows: Tensor) -> list[Result]:
        """Return `compute(batch)` for batches of `rows` [n]; see `memory.in_batches`."""
        return in_batches(compute, rows, self._at_once)

    def some_to_train_on(self, most: int) -> Tensor:
        """Return `most` scans to train on, or all if there are fewer, in random order, [n] on the device."""
        return pass_order(self.train, self.seed, 0)[:most].to(self.device)

    def training_noise(self, batch: Batch) -> Noise:
        """Return where the random numbers of a batch come from."""

        def noise(purpose: str, width: int) -> Tensor:
            whole = self._uniform(batch.total, width, purpose, batch.step)
            return whole[batch.first : batch.first + len(batch.rows)]

        return noise

    def validation_noise(self, places: Tensor) -> Noise:
        """Return where the random numbers of the validation scans `places` [B] come from."""

        def noise(purpose: str, width: int) -> Tensor:
            return self._uniform(self.validation, width, f"validation {purpose}")[places]

        return noise

    def _uniform(self, size: int, width: int, *purpose: object) -> Tensor:
        # For all scans of all processes, so that a scan's do not depend on where it is passed through.
        source = generator(self.device, self.seed, *purpose)
        return torch.rand(size, width, generator=source, device=self.device)

    def means_over_validation(
        self, summed: Callable[[Tensor, Tensor, Noise], tuple[Tensor, Tensor]]
    ) -> list[float]:
        """Return means over all validation scans, shared by the processes.

        Args:
            summed: As `Pretraining.losses`, without the network.
        """

        def passed(places: Tensor) -> Tensor:
            rows = self.train + places
            sums, weight = summed(self.volumes.batch(rows), rows, self.validation_noise(places))
            return torch.cat([sums, weight[None]])

        part = self.ranks.share(self.validation)
        places = torch.arange(part.start, part.stop, device=self.device)
        # A process may have no scan of its own; one of the others' then says how many sums there are.
        sums = self.in_batches(passed, places) or [torch.zeros_like(passed(places.new_zeros(1)))]
        *values, weight = self.ranks.sum(torch.stack(sums).sum(dim=0)).tolist()
        return [value / max(weight, 1) for value in values]

    def look(self, encoder: Backbone) -> dict[str, float]:
        """Return the participation ratio of an encoder's mean-pooled features and its probes, see `diagnose`.

        Every process looks at the same scans, the first one of each subject and `LARGEST` at most.
        """
        places = _first_scans(self.rows)[:LARGEST]

        def pooled(rows: Tensor) -> Tensor:
            with self.autocast():
                return encoder(self.volumes.batch(rows)).float()

        features = torch.cat(self.in_batches(pooled, torch.tensor(places, device=self.device))).cpu()
        known = {name: [values[place] for place in places] for name, values in self.known.items()}
        ratio = participation_ratio(features)
        return {"participation_ratio": ratio, **probe(features.double().numpy(), known)}


def learner_of(kind: Pretraining, run: Run) -> Learner:
    """Return what the loop trains of a pretraining, whose network is on the device."""
    network = kind.network
    changes = read_augmentation(run.spec["augment"])
    shared = ranks.distributed(network, run.ranks, run.device)
    forward = torch.compile(shared) if run.spec["compile"] else shared
    places = torch.arange(run.train, device=run.volumes.data.device)
    batches = TrainingBatches(run.volumes, places, int(run.spec["batch_size"]), run.seed, run.ranks)

    def loss(batch: Batch) -> tuple[Tensor, Tensor]:
        scans = as_input(batch.volumes)
        changed = augment(scans, changes, run.seed, batch.step, batch.first, batch.total)
        rows = batch.rows.to(run.device, non_blocking=True)
        with run.autocast():
            terms, weight = kind.losses(forward, changed, rows, run.training_noise(batch))
        return terms.sum(), weight  # outside: the backward pass is not for autocast

    def summed(volumes: Tensor, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        with run.autocast():
            return kind.losses(network, volumes, rows, noise)

    def validate() -> dict[str, float]:
        return {**kind.validation(run.means_over_validation(summed)), **run.look(network.encoder)}

    state, load = lambda: dict(network.state_dict()), network.load_state_dict
    return Learner(network, batches.get, loss, validate, state, load)


def _first_scans(rows: Sequence[Mapping[str, str]]) -> list[int]:
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row["subject"], place)
    return list(first.values())
