"""Where in the brain methods look: gradients of predictions, averaged over test scans in template space.

SmoothGrad (Smilkov 2017): the mean gradient of an output over noisy copies of a scan. Its magnitude, over the
scan's own mean of it, is averaged over scans. The same map of the network with random weights is the control
(Adebayo 2018): what it shows as well is the architecture and the anatomy, and nothing that was learnt.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from neuropeft.analyses.vary import first_scans
from neuropeft.backbones.heads import Predictor
from neuropeft.cohorts.splits import VALIDATION
from neuropeft.export.network import plain_network
from neuropeft.files import atomic_path
from neuropeft.train.data import generator
from neuropeft.train.memory import in_batches
from neuropeft.train.predict import CellShown
from neuropeft.variant_names import LEARNT, RANDOM

COPIES = 8  # noisy ones of a scan
NOISE = 0.1  # their SD, of the range of the scan's values


def write_saliency(scans: int, cells: Iterable[CellShown], out: str | Path) -> None:
    """Write the mean saliency of the cells that share a base, and that of their network with random weights.

    Args:
        scans: of the test side, first scans of as many subjects at most, for each cell.
        cells: one or more that share a base, see `train.predict.cells_shown`.
        out: the .npz file to write: `learnt` and `random`, float32 [*S], each 1 on average over the scan;
            and `scans`, how many there are.
    """
    maps: dict[str, list[Tensor]] = {LEARNT: [], RANDOM: []}
    for cell in cells:
        tested = _some(first_scans(cell), scans)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(cell.spec["seed"]))
            untrained = _drawn_anew(plain_network(cell.spec)).to(tested.shown.places.device)
        maps[LEARNT].append(saliency(cell.model, tested))
        maps[RANDOM].append(saliency(untrained, tested))
    means = {name: torch.cat(some).mean(dim=0).numpy() for name, some in maps.items()}
    with atomic_path(out) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **means, scans=sum(map(len, maps[LEARNT])))


def _some(cell: CellShown, number: int) -> CellShown:
    """Return a cell with so many of its test scans."""
    tested = cell.only(lambda row: row["split"] != VALIDATION)
    chosen = set(sorted(tested.shown.scans)[:number])
    return tested.only(lambda row: row["scan_id"] in chosen)


def saliency(network: nn.Module, cell: CellShown) -> Tensor:
    """Return the saliency of a network for each scan of a cell, on the CPU, [scans, *S], 1 on average."""
    shown = cell.shown
    names = dict(zip(shown.places.tolist(), shown.scans, strict=True))

    def of_batch(places: Tensor) -> Tensor:
        volumes = shown.volumes.batch(places)
        spread = NOISE * (volumes.flatten(1).amax(1) - volumes.flatten(1).amin(1))
        total = torch.zeros_like(volumes)
        for copy in range(COPIES):
            noise = torch.empty_like(volumes)
            for one, place in zip(noise, places.tolist(), strict=True):
                one.normal_(generator=generator(volumes.device, copy, "saliency", names[place]))
            noisy = volumes + noise * spread.view(-1, *[1] * (volumes.ndim - 1))
            outputs = network(noisy.requires_grad_())
            # Of several outputs that of the predicted class; a scan's gradient has nothing of others.
            total += torch.autograd.grad(outputs.amax(dim=1).sum(), noisy)[0]
        found = total.norm(dim=1)  # over channels
        mean = found.flatten(1).mean(dim=1).clamp_min(1e-30)
        return (found / mean.view(-1, *[1] * (found.ndim - 1))).cpu()

    return torch.cat(in_batches(of_batch, shown.places, shown.at_once))


def _drawn_anew(network: Predictor) -> Predictor:
    """Return a network whose head has random weights of the usual size: it starts near 0 for training."""
    for module in network.head.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return network
