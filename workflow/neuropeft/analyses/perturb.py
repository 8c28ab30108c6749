"""Scans that are changed a little, the same for all methods: what becomes of their predictions?

A scan has one draw of each change, whatever the strength: directions, places and shares stay, and the size
grows with it. Draws follow from the scan's name, and on a GPU differ from those on a CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.data import Volumes
from neuropeft.train.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Perturbed(Volumes):
    """Volumes whose batches are changed.

    Attributes:
        kind: the change, as `Augmentation` names it.
        strength: the largest one, in its unit there.
        scans: the name of each volume, [n].
    """

    kind: str
    strength: float
    scans: tuple[str, ...]

    def batch(self, rows: Tensor) -> Tensor:
        """Return the changed volumes `rows` [B] as float32 [B, channels, *size] on the device."""
        found = [
            perturbed(volume[None], self.kind, self.strength, self.scans[row])
            for volume, row in zip(super().batch(rows), rows.tolist(), strict=True)
        ]
        return torch.cat(found)


def perturbed(volume: Tensor, kind: str, strength: float, scan: str) -> Tensor:
    """Return the volume [1, C, *S] of a scan, changed."""
    found = augment(volume, read_augmentation({kind: strength}), derive_seed(0, "robustness", scan), step=0)
    if kind == "noise":
        # The background of a scan without its skull, or beside an image, is no air that was measured.
        found = torch.where(volume > volume.amin(), found, volume)
    return found
