"""The learner of a masked autoencoder (He et al. 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuropeft.backbones.vit import patchify
from neuropeft.files import atomic_path
from neuropeft.pretraining.mae3d import MAE3D, MINIMUM_VARIANCE, build_mae
from neuropeft.train import ranks
from neuropeft.train.augment import read_augmentation
from neuropeft.train.data import Volumes, pass_order
from neuropeft.train.loop import Learner
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.pretraining_run import Run, look, means_over_validation

FILES = ("reconstructions.npz",)
SHOWN = 4  # validation scans whose reconstruction is stored
TEMPLATE_SCANS = 512  # training scans at most that make the template
FOREGROUND_SHARE = 0.5  # of scans in which a place is no background, for it to count as brain


def build(spec: Mapping[str, Any], volumes: Volumes, train: int) -> MAE3D:
    """Return the network of a pretraining, on the CPU, drawn from torch's global generator."""
    mae = build_mae(spec["backbone"], spec["decoder"], spec["mask_ratio"], spec["normalize_targets"])
    if spec["mask"] == "all":
        return mae
    places = _foreground(mae, volumes, train)
    return MAE3D(mae.encoder, mae.shape, spec["mask_ratio"], spec["normalize_targets"], places)


def learner(run: Run) -> Learner:
    """Return what the loop trains."""
    mae = run.model
    assert isinstance(mae, MAE3D)
    changes = read_augmentation(run.spec["augment"])
    shared = ranks.spread(mae, run.ranks, run.device)
    forward = torch.compile(shared) if run.spec["compile"] else shared
    tokens = mae.encoder.config.tokens

    def batch_losses(rows: Tensor, step: int, parts: int) -> Iterator[Tensor]:
        noise = run.noise(len(rows), tokens, "mask", step)
        if parts == 1 and run.ranks.size == 1:  # nothing to weigh: counting patches costs a good tenth
            ((_, volumes),) = run.pieces(rows, step, 1, changes)
            with run.autocast():
                loss = forward(volumes, noise).loss
            yield loss  # outside: the backward pass is not for autocast
            return
        pieces = [(volumes, noise[place]) for place, volumes in run.pieces(rows, step, parts, changes)]
        counted = [_scored(mae, volumes, mae.mask(part)) for volumes, part in pieces]
        patches = run.ranks.sum(torch.stack(counted).sum()).clamp_min(1)
        for piece, number in zip(pieces, counted, strict=True):
            with run.autocast():
                output = forward(*piece)
            yield output.loss * (number / patches * run.ranks.size)

    at_once = BatchSize(int(run.spec["batch_size"]))
    template_loss = _template_loss(run, mae, at_once)

    def validate() -> dict[str, float]:
        return {
            "val_loss": _validation_loss(run, mae, at_once),
            "template_loss": template_loss,
            **look(run, at_once),
        }

    return Learner(mae, batch_losses, validate, lambda: dict(mae.state_dict()), mae.load_state_dict)


def _validation_loss(run: Run, mae: MAE3D, size: BatchSize) -> float:
    """Return the loss over all validation scans, whose masks are the same each time."""
    noise = _validation_noise(run, mae)

    def summed(places: Tensor) -> Tensor:
        volumes = run.volumes.batch(run.train + places)
        with run.autocast():
            output = mae(volumes, noise[places])
        counted = _scored(mae, volumes, output.mask)
        return torch.stack([output.loss * counted, counted])  # summed error, scored patches

    return means_over_validation(run, size, summed)[0]


@torch.inference_mode()
def _template_loss(run: Run, mae: MAE3D, size: BatchSize) -> float:
    """Return the validation loss of predicting, at each place, the mean of the training scans' patches.

    A network that does no better knows where in the brain a patch lies, and nothing of whose brain it is.
    """
    noise = _validation_noise(run, mae)
    rows = pass_order(run.train, run.seed, 0)[:TEMPLATE_SCANS].to(run.device)

    def added(chosen: Tensor) -> tuple[Tensor, Tensor]:
        target, weight = mae.targets(run.volumes.batch(chosen))  # [B, N, patch^3], [B, N]
        return (target * weight[..., None]).sum(dim=0), weight.sum(dim=0)

    sums, weights = zip(*in_batches(added, rows, size), strict=True)
    template = sum(sums) / sum(weights).clamp_min(1)[:, None]  # [N, patch^3]

    def summed(places: Tensor) -> Tensor:
        target, weight = mae.targets(run.volumes.batch(run.train + places))
        weight = weight * mae.mask(noise[places])
        return torch.stack([((target - template).square().mean(dim=-1) * weight).sum(), weight.sum()])

    return means_over_validation(run, size, summed)[0]


def _validation_noise(run: Run, mae: MAE3D) -> Tensor:
    return run.noise(run.validation, mae.encoder.config.tokens, "validation mask")


def _scored(mae: MAE3D, volumes: Tensor, mask: Tensor) -> Tensor:
    """Return over how many patches the autoencoder's loss is a mean: masked ones that are not background."""
    if mae.normalize_targets:
        patches = patchify(volumes, mae.encoder.config.patch_size)  # [B, N, patch^3]
        mask = mask & (patches.var(dim=-1) > MINIMUM_VARIANCE)
    return mask.sum().float()


def _foreground(mae: MAE3D, volumes: Volumes, train: int) -> Tensor:
    """Return the places [N] that are no background in most training scans."""
    patch = mae.encoder.config.patch_size
    rows = torch.arange(min(train, TEMPLATE_SCANS))

    def brain(chosen: Tensor) -> Tensor:
        return (
            (patchify(volumes.batch(chosen), patch).var(dim=-1) > MINIMUM_VARIANCE).float().sum(dim=0).cpu()
        )

    held = torch.stack(in_batches(brain, rows, BatchSize(8))).sum(dim=0)
    return held >= FOREGROUND_SHARE * len(rows)


@torch.inference_mode()
def write(folder: Path, run: Run) -> None:
    """Write the reconstructions of some validation scans, as they were masked in validation."""
    mae = run.model
    assert isinstance(mae, MAE3D)
    mae.eval()
    number = min(SHOWN, run.validation)
    volumes = run.volumes.batch(torch.arange(run.train, run.train + number, device=run.device))
    noise = _validation_noise(run, mae)[:number]
    with run.autocast():  # one at a time: what training had memory for may be no more
        pictures = [mae.reconstruct(volumes[i : i + 1], noise[i : i + 1]) for i in range(number)]
    images, masks = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    arrays = {"input": volumes, "mask": masks, "reconstruction": images}
    halves: dict[str, Any] = {name: value[:, 0].half().cpu().numpy() for name, value in arrays.items()}
    scans: Sequence[str] = [row["scan_id"] for row in run.rows[run.train :][:number]]
    with atomic_path(folder / FILES[0]) as partial:
        np.savez_compressed(partial, scan_id=np.array(scans), **halves)
