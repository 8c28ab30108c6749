"""Pretrain an encoder as a masked autoencoder (He et al. 2022) on the store of a cohort."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuropeft.cohorts.splits import held_out_subjects, read_split
from neuropeft.errors import UserError
from neuropeft.files import atomic_path, link_or_copy, read_tsv
from neuropeft.models.build import build_mae
from neuropeft.models.checkpoints import save_encoder
from neuropeft.models.mae3d import MAE3D, MINIMUM_VARIANCE
from neuropeft.models.vit3d import patchify
from neuropeft.sources import code_digest
from neuropeft.store import open_store
from neuropeft.train import checkpoint, ranks
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.cost import write_cost
from neuropeft.train.data import Volumes, as_input, derive_seed, generator, load_volumes, pick_device
from neuropeft.train.history import write_history
from neuropeft.train.lock import lock
from neuropeft.train.loop import CHECKPOINT_SECONDS, Home, Learner, Plan, Progress, fit, run_cost
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.ranks import Ranks
from neuropeft.train.signals import stop_request
from neuropeft.train.state import FINISHED, forget, is_finished

FILES = (
    "encoder.safetensors",
    "history.csv",
    "reconstructions.npz",
    "cost.json",
)  # the last one is written last
SHOWN = 4  # validation scans whose reconstruction is stored


@dataclass(frozen=True)
class _Setting:
    """A pretraining on this process: its volumes, of which the first `train` are trained on."""

    spec: Mapping[str, Any]
    mae: MAE3D
    volumes: Volumes
    train: int
    ranks: Ranks

    @property
    def seed(self) -> int:
        return int(self.spec["seed"])

    @property
    def validation(self) -> int:
        return len(self.volumes) - self.train


def pretrain(
    spec: Mapping[str, Any],
    store_dir: str | Path,
    held_out_splits: Sequence[str | Path],
    out_dir: str | Path,
    state_dir: str | Path,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train a masked autoencoder; write encoder.safetensors, history.csv, cost.json and reconstructions.npz.

    What has been trained before with the same settings, code and data is not trained again. Started by
    torchrun, the processes share each batch, and the loss curve is that of one process up to rounding.

    Args:
        spec: What defines the pretraining, as `grid.pretraining_spec` writes it: backbone, decoder,
            mask_ratio, epochs, batch_size (over all processes), lr, warmup_epochs, weight_decay, betas,
            clip, augment, seed, validation_share, normalize_targets, mixed_precision, compile.
        store_dir: Store of the cohort.
        held_out_splits: Splits whose test subjects are left out.
        out_dir: Folder for the outputs.
        state_dir: Folder of this pretraining alone, for its checkpoints and, in `finished`, for what it
            wrote; while another process trains there, this one waits.
        device: As torch names it; the GPU of this process if there is one.
        checkpoint_seconds: Least time between checkpoints.

    Raises:
        UserError: An input is missing or wrong, or the loss is not finite.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1. torchrun hides the code.
    """
    out, state = Path(out_dir), Path(state_dir)
    with stop_request():
        team, gpu = ranks.join()
        with lock(state) if team.first else nullcontext():
            team.wait()
            _pretrain(
                spec, Path(store_dir), held_out_splits, state,
                pick_device(device or gpu), checkpoint_seconds, team,
            )  # fmt: skip
            if team.first:
                for name in FILES:
                    link_or_copy(state / FINISHED / name, out / name)
            team.wait()
        # Not after an error, which the others may not have had: NCCL would wait for them here forever.
        ranks.leave(team)


def _pretrain(
    spec: Mapping[str, Any],
    store_dir: Path,
    held_out_splits: Sequence[str | Path],
    state: Path,
    device: torch.device,
    checkpoint_seconds: float,
    team: Ranks,
) -> None:
    train, validation = _scans(spec, store_dir, held_out_splits)
    if spec["batch_size"] < team.size:
        raise UserError(
            f"batch_size {spec['batch_size']} is less than {team.size} processes; give a larger one"
        )
    store = open_store(store_dir)
    scans = [row["scan_id"] for row in (*train, *validation)]
    rows = [store.index_of(scan) for scan in scans]
    home = Home(
        state,
        checkpoint.fingerprint(dict(spec), store.hashes(scans), len(train), code_digest("train.pretrain")),
        spec,
        checkpoint_seconds,
    )
    done = team.first and is_finished(state, home.fingerprint, FILES)
    if team.any(done)[0]:
        return
    torch.manual_seed(int(spec["seed"]))
    mae = build_mae(spec["backbone"], spec["decoder"], spec["mask_ratio"], spec["normalize_targets"])
    mae.to(device)
    if not team.first:
        torch.manual_seed(
            derive_seed(int(spec["seed"]), "rank", team.rank)
        )  # other scans, other stochastic depth
    setting = _Setting(spec, mae, load_volumes(store.volumes, rows, device), len(train), team)
    plan = Plan(
        name="pretraining",
        samples=len(train),
        epochs=int(spec["epochs"]),
        batch_size=int(spec["batch_size"]),
        warmup_epochs=int(spec["warmup_epochs"]),
        clip=float(spec["clip"]),
        seed=int(spec["seed"]),
    )
    betas = (float(spec["betas"][0]), float(spec["betas"][1]))
    progress = fit(_learner(setting), _groups(spec, mae), plan, home, device, betas, team)
    if team.first:
        _write(home, setting, train, validation, progress)
        checkpoint.remove(state)


def _scans(
    spec: Mapping[str, Any], store_dir: Path, held_out_splits: Sequence[str | Path]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the rows of the store to train on and to validate on; whole subjects on either side."""
    tested = held_out_subjects(map(read_split, held_out_splits))
    rows = [row for row in read_tsv(store_dir / "scans.tsv") if row["subject"] not in tested]
    subjects = sorted({row["subject"] for row in rows})
    number = max(1, round(spec["validation_share"] * len(subjects)))
    if len(subjects) <= number:
        raise UserError(
            f"{store_dir / 'scans.tsv'} has {len(subjects)} subjects that are not tested on, "
            "too few to pretrain; pretrain on another cohort"
        )
    random.Random(derive_seed(int(spec["seed"]), "validation")).shuffle(subjects)
    validating = set(subjects[:number])
    train = [row for row in rows if row["subject"] not in validating]
    return train, [row for row in rows if row["subject"] in validating]


def _groups(spec: Mapping[str, Any], mae: MAE3D) -> list[dict[str, Any]]:
    # No decay on biases and norms, as in the original.
    groups = []
    for decayed in (True, False):
        parameters = [value for value in mae.parameters() if (value.ndim > 1) == decayed]
        decay = spec["weight_decay"] if decayed else 0.0
        groups.append({"params": parameters, "lr": spec["lr"], "weight_decay": decay})
    return groups


def _learner(setting: _Setting) -> Learner:
    spec, mae, team = setting.spec, setting.mae, setting.ranks
    device = setting.volumes.device
    changes = read_augmentation(spec["augment"])
    shared = ranks.spread(mae, team, device)
    forward = torch.compile(shared) if spec["compile"] else shared
    places = torch.arange(setting.train, device=setting.volumes.data.device)
    batches = TrainingBatches(setting.volumes, places, int(spec["batch_size"]), setting.seed, team)

    def batch_losses(rows: Tensor, epoch: int, step: int, parts: int) -> Iterator[Tensor]:
        noise = _mask_noise(setting, len(rows), "mask", epoch, step)
        stored, own = batches.get(rows, epoch, step), batches.part(len(rows))
        if parts == 1 and team.size == 1:  # nothing to weigh: counting patches costs a good tenth
            batch = augment(as_input(stored), changes, setting.seed, (epoch, step))
            with _autocast(setting):
                loss = forward(batch, noise).loss
            yield loss  # outside: the backward pass is not for autocast
            return
        pieces, counted = [], []
        for place in (team.share(len(rows), part, parts) for part in range(parts)):
            held = place.stop > place.start
            # Where a batch is smaller than the pieces are many, those without a scan take one that counts
            # nothing.
            place = place if held else slice(own.start, own.start + 1)
            volumes = as_input(stored[place.start - own.start : place.stop - own.start])
            changed = augment(volumes, changes, setting.seed, (epoch, step), place.start, len(rows))
            pieces.append((changed, noise[place]))
            counted.append(_scored(mae, changed, mae.mask(noise[place])) * held)
        patches = team.sum(torch.stack(counted).sum()).clamp_min(1)
        for piece, number in zip(pieces, counted, strict=True):
            with _autocast(setting):
                output = forward(*piece)
            yield output.loss * (number / patches * team.size)

    at_once = BatchSize(int(setting.spec["batch_size"]))

    def validate() -> dict[str, float]:
        return {"val_loss": _validation_loss(setting, at_once)}

    return Learner(mae, batch_losses, validate, lambda: dict(mae.state_dict()), mae.load_state_dict)


def _validation_loss(setting: _Setting, size: BatchSize) -> float:
    """Return the loss over all validation scans, whose masks are the same in every epoch."""
    part = setting.ranks.share(setting.validation)
    rows = torch.arange(part.start, part.stop, device=setting.volumes.device)
    noise = _mask_noise(setting, setting.validation, "validation mask")

    def summed(places: Tensor) -> Tensor:
        volumes = setting.volumes.batch(setting.train + places)
        with _autocast(setting):
            output = setting.mae(volumes, noise[places])
        counted = _scored(setting.mae, volumes, output.mask)
        return torch.stack([output.loss * counted, counted])  # summed error, scored patches

    none = torch.zeros(2, device=setting.volumes.device)  # a process may have no scan
    total = torch.stack([none, *in_batches(summed, rows, size)]).sum(dim=0)
    error, patches = setting.ranks.sum(total).tolist()
    return error / max(patches, 1)


def _scored(mae: MAE3D, volumes: Tensor, mask: Tensor) -> Tensor:
    """Return over how many patches the autoencoder's loss is a mean: masked ones that are not background."""
    if mae.normalize_targets:
        patches = patchify(volumes, mae.encoder.config.patch_size)  # [B, N, patch^3]
        mask = mask & (patches.var(dim=-1) > MINIMUM_VARIANCE)
    return mask.sum().float()


def _mask_noise(setting: _Setting, size: int, *purpose: object) -> Tensor:
    # Every process draws the numbers of the whole batch, [size, N], and uses those of its part.
    device = setting.volumes.device
    source = generator(device, setting.seed, *purpose)
    return torch.rand(size, setting.mae.encoder.config.tokens, generator=source, device=device)


def _autocast(setting: _Setting) -> torch.autocast:
    device = setting.volumes.device.type
    enabled = setting.spec["mixed_precision"] and device == "cuda"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=enabled)


def _write(
    home: Home,
    setting: _Setting,
    train: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    progress: Progress,
) -> None:
    out, mae, history = home.folder / FINISHED, setting.mae, progress.history
    forget(out, FILES)
    numbers = {
        "epochs": str(len(history)),
        "scans": str(len(train)),
        "val_loss": repr(history[-1]["val_loss"]),
    }
    save_encoder(out / "encoder.safetensors", mae.encoder, {"pretraining": "mae", **numbers})
    write_history(out / "history.csv", history)
    _write_reconstructions(out / "reconstructions.npz", setting, [row["scan_id"] for row in validation])
    cost = {
        "encoder": sum(value.numel() for value in mae.encoder.parameters()),
        "total": sum(value.numel() for value in mae.parameters()),
        "peak_memory_bytes": progress.peak_memory,
        "train_subjects": len({row["subject"] for row in train}),
        "train_scans": len(train),
        "validation_scans": len(validation),
        "processes": setting.ranks.size,
    }
    write_cost(out / "cost.json", cost | run_cost(progress, home, setting.volumes.device))


@torch.inference_mode()
def _write_reconstructions(path: Path, setting: _Setting, scans: Sequence[str]) -> None:
    setting.mae.eval()
    number = min(SHOWN, len(scans))
    volumes = setting.volumes.batch(
        torch.arange(setting.train, setting.train + number, device=setting.volumes.device)
    )
    noise = _mask_noise(setting, setting.validation, "validation mask")[:number]
    with _autocast(setting):  # one at a time: what training had memory for may be no more
        pictures = [setting.mae.reconstruct(volumes[i : i + 1], noise[i : i + 1]) for i in range(number)]
    images, masks = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    arrays = {"input": volumes, "mask": masks, "reconstruction": images}
    halves: dict[str, Any] = {name: value[:, 0].half().cpu().numpy() for name, value in arrays.items()}
    with atomic_path(path) as partial:
        np.savez_compressed(partial, scan_id=np.array(scans[:number]), **halves)
