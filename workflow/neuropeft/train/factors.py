"""The learner of `factors`: to read the known anatomy of synthetic brains, before any real brain is seen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neuropeft.backbones import vit
from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, MAPS
from neuropeft.pretraining.factors import FactorReader
from neuropeft.train import ranks
from neuropeft.train.augment import read_augmentation
from neuropeft.train.data import Volumes
from neuropeft.train.loop import Learner
from neuropeft.train.memory import BatchSize
from neuropeft.train.pretraining_run import Run, look, means_over_validation

FILES: tuple[str, ...] = ()
SMALLEST_SD = 0.01  # of a share, or of mm, over scans: below, a place holds always the same


def build(spec: Mapping[str, Any], volumes: Volumes, train: int) -> FactorReader:
    """Return the network of a pretraining, on the CPU, drawn from torch's global generator."""
    return FactorReader(vit.build(spec["backbone"]), len(ANATOMY_FACTORS))


def learner(run: Run) -> Learner:
    """Return what the loop trains: the mean squared error of maps and factors, each standardised."""
    model = run.model
    assert isinstance(model, FactorReader)
    maps, factors = _targets(run, model)
    changes = read_augmentation(run.spec["augment"])
    shared = ranks.spread(model, run.ranks, run.device)
    forward = torch.compile(shared) if run.spec["compile"] else shared

    def losses(network: Any, volumes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with run.autocast():
            found_maps, found_factors = network(volumes)
        of_maps = (found_maps.float() - maps[rows]).square().mean(dim=(1, 2))
        return of_maps, (found_factors.float() - factors[rows]).square().mean(dim=1)  # [B] each

    def batch_losses(rows: Tensor, step: int, parts: int) -> Iterator[Tensor]:
        for place, volumes in run.pieces(rows, step, parts, changes):
            here = rows[place].to(run.device, non_blocking=True)
            of_maps, of_factors = losses(forward, volumes, here)
            yield (of_maps + of_factors).sum() / len(rows) * run.ranks.size

    at_once = BatchSize(int(run.spec["batch_size"]))

    def summed(places: Tensor) -> Tensor:
        rows = run.train + places
        of_maps, of_factors = losses(model, run.volumes.batch(rows), rows)
        return torch.stack([of_maps.sum(), of_factors.sum(), torch.ones_like(of_maps).sum()])

    def validate() -> dict[str, float]:
        of_maps, of_factors = means_over_validation(run, at_once, summed)
        return {
            "val_loss": of_maps + of_factors,
            "val_maps": of_maps,
            "val_factors": of_factors,
            **look(run, at_once),
        }

    return Learner(model, batch_losses, validate, lambda: dict(model.state_dict()), model.load_state_dict)


def _targets(run: Run, model: FactorReader) -> tuple[Tensor, Tensor]:
    """Return the standardised maps [n, N, MAPPED] and factors [n, factors] of all scans.

    Maps are standardised place by place: what all brains share there is no knowledge of one of them.
    """
    factors = torch.tensor([[float(row[name]) for name in ANATOMY_FACTORS] for row in run.rows])
    rows = [int(row["row"]) for row in run.rows]
    drawn = np.concatenate([np.load(run.store / name, mmap_mode="r")[rows] for name in MAPS], axis=1)
    grid = model.encoder.config.grid
    pooled = F.adaptive_avg_pool3d(torch.from_numpy(drawn).float(), grid)  # [n, MAPPED, grid, grid, grid]
    maps = _standardised(pooled.flatten(2).transpose(1, 2), run.train, SMALLEST_SD)  # [n, N, MAPPED]
    return maps.to(run.device), _standardised(factors, run.train, 0.0).to(run.device)


def _standardised(values: Tensor, train: int, smallest: float) -> Tensor:
    """Return values in SDs of the first `train`; 0 where the SD is not above `smallest`."""
    deviation, mean = torch.std_mean(values[:train], dim=0)
    return torch.where(deviation > smallest, (values - mean) / deviation.clamp_min(1e-12), 0.0)


def write(folder: Path, run: Run) -> None:
    """Write nothing beside the encoder."""
