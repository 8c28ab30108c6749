"""Reading the known anatomy of synthetic brains, before any real brain is seen."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones import vit
from neuropeft.backbones.vit import ViT3D
from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, MAPS
from neuropeft.pretraining.base import Noise, Pretraining

MAPPED = 6  # shares of grey matter, white matter and CSF; displacement along three axes
SMALLEST_SD = 0.01  # of a share, or of mm, over scans: below, a place holds always the same


class FactorReader(nn.Module):
    """`encoder` with a linear reader on every token and one on their mean."""

    def __init__(self, encoder: ViT3D, factors: int) -> None:
        """Put readers on `encoder`: of `MAPPED` numbers per token and of `factors` numbers per scan."""
        super().__init__()
        self.encoder = encoder
        self.read_maps = nn.Linear(encoder.config.width, MAPPED)
        self.read_factors = nn.Linear(encoder.config.width, factors)
        for reader in (self.read_maps, self.read_factors):
            nn.init.trunc_normal_(reader.weight, std=0.01)
            nn.init.zeros_(reader.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps [B, N, MAPPED] and factors [B, factors], standardised, of scans [B, 1, S, S, S]."""
        tokens = self.encoder.tokens(x)  # [B, N, width]
        return self.read_maps(tokens), self.read_factors(tokens.mean(dim=1))


class Factors(Pretraining):
    """The mean squared error of maps and factors, each standardised."""

    shows = ("val_loss", "val_maps", "val_factors")
    network: FactorReader

    def build(self) -> FactorReader:
        """Return the network."""
        return FactorReader(vit.build(self.run.spec["backbone"]), len(ANATOMY_FACTORS))

    def losses(self, network: Any, volumes: Tensor, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the errors of maps and of factors, [2], and the number of scans."""
        maps, factors = self.targets
        found_maps, found_factors = network(volumes)
        of_maps = (found_maps.float() - maps[rows]).square().mean(dim=(1, 2))  # [B]
        of_factors = (found_factors.float() - factors[rows]).square().mean(dim=1)
        return torch.stack([of_maps.sum(), of_factors.sum()]), torch.ones_like(of_maps).sum()

    def validation(self, means: Sequence[float]) -> dict[str, float]:
        """Return the loss and its two terms."""
        return {"val_loss": sum(means), "val_maps": means[0], "val_factors": means[1]}

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """The standardised maps [n, N, MAPPED] and factors [n, factors] of all scans.

        Maps are standardised place by place: what all brains share there is no knowledge of one of them.
        """
        run, grid = self.run, self.network.encoder.config.grid
        factors = torch.tensor([[float(row[name]) for name in ANATOMY_FACTORS] for row in run.rows])
        rows = [int(row["row"]) for row in run.rows]
        drawn = np.concatenate([np.load(run.store / name, mmap_mode="r")[rows] for name in MAPS], axis=1)
        pooled = F.adaptive_avg_pool3d(torch.from_numpy(drawn).float(), grid)  # [n, MAPPED, *grid]
        maps = _standardised(pooled.flatten(2).transpose(1, 2), run.train, SMALLEST_SD)  # [n, N, MAPPED]
        return maps.to(run.device), _standardised(factors, run.train, 0.0).to(run.device)


def _standardised(values: Tensor, train: int, smallest: float) -> Tensor:
    """Return values in SDs of the first `train`; 0 where the SD is not above `smallest`."""
    deviation, mean = torch.std_mean(values[:train], dim=0)
    return torch.where(deviation > smallest, (values - mean) / deviation.clamp_min(1e-12), 0.0)


KIND = Factors
