"""Fine-tune one cell: a pretrained (or random) backbone, a method, a fraction and a seed give a delta."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.models.build import build_predictor
from neuropeft.models.checkpoints import load_encoder
from neuropeft.models.heads import Predictor
from neuropeft.peft.adapt import adapt, delta_state, load_delta, parameter_groups, save_delta
from neuropeft.peft.counts import count
from neuropeft.peft.selective import require_vit
from neuropeft.store import Store, open_store
from neuropeft.train import checkpoint
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.cost import device_name, write_cost
from neuropeft.train.data import Volumes, load_volumes, pick_device
from neuropeft.train.flops import training_flops
from neuropeft.train.history import write_history
from neuropeft.train.labels import Sides, read_sides, shuffled, stored_sessions
from neuropeft.train.loop import CHECKPOINT_SECONDS, Home, Learner, Plan, Progress, fit
from neuropeft.train.losses import Objective, objective, outputs_of

Network = Callable[[Tensor], Tensor]
OPTIMISER_KEYS = ("lr", "head_lr", "weight_decay")  # of a method; the rest are options of its adapter


def finetune(
    spec: Mapping[str, Any],
    store_dir: str | Path,
    split_tsv: str | Path,
    encoder_path: str | Path | None,
    out_dir: str | Path,
    state_dir: str | Path,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train a cell and write delta.safetensors, history.csv and cost.json into `out_dir`.

    Args:
        spec: What defines the cell, as `grid.cell_spec` writes it: cell, task, backbone, method, training,
            fraction, seed, shuffle_labels.
        store_dir: Store of the training cohort.
        split_tsv: Split of the cell's task and seed; its test side is not read.
        encoder_path: Pretrained encoder; None starts from random weights.
        out_dir: Folder for the outputs.
        state_dir: Folder for checkpoints, of this cell alone; emptied when the outputs are written.
        device: As torch names it; the GPU if there is one.
        checkpoint_seconds: Least time between checkpoints.

    Raises:
        UserError: An input is missing or wrong, or the loss is not finite.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1.
    """
    where = pick_device(device)
    store = open_store(store_dir)
    sides = read_sides(split_tsv, int(spec["fraction"]), stored_sessions(store_dir))
    if spec["shuffle_labels"]:
        sides = shuffled(sides, int(spec["seed"]))
    goal = objective(spec["task"], [row["y"] for row in sides.train], spec["cell"])
    torch.manual_seed(int(spec["seed"]))
    model = make_model(spec, encoder_path).to(where)
    learner = _learner(spec, model, goal, store, sides, where)
    training, method = spec["training"], spec["method"]
    plan = Plan(
        name=spec["cell"],
        samples=len(sides.train),
        epochs=int(training["epochs"]),
        batch_size=int(training["batch_size"]),
        warmup_epochs=int(training["warmup_epochs"]),
        clip=float(training["clip"]),
        seed=int(spec["seed"]),
        patience=int(training["patience"]),
    )
    stamps = [checkpoint.file_stamp(path) for path in (encoder_path, Path(store_dir) / "volumes.npy")]
    rows = [[[row["scan_id"], row["y"]] for row in side] for side in (sides.train, sides.validation)]
    identity = checkpoint.fingerprint(dict(spec), stamps, rows)
    home = Home(Path(state_dir), identity, spec, checkpoint_seconds)
    groups = parameter_groups(model, method["lr"], method.get("weight_decay", 0.0), method.get("head_lr"))
    progress = fit(learner, groups, plan, home, where)
    _write(Path(out_dir), spec, model, goal, sides, progress, where, store.volumes.shape[-1])
    checkpoint.remove(home.folder)


def make_model(spec: Mapping[str, Any], encoder_path: str | Path | None) -> Predictor:
    """Return the adapted network of a cell, on the CPU, drawn from torch's global generator."""
    model = build_predictor(spec["backbone"], outputs_of(spec["task"]))
    if encoder_path is not None:
        load_encoder(encoder_path, require_vit(model.backbone, spec["method"]["kind"]))
    adapt(model, {key: value for key, value in spec["method"].items() if key not in OPTIMISER_KEYS})
    return model


def forward_outputs(model: Network, volumes: Tensor, mixed_precision: bool) -> Tensor:
    """Return the outputs [B, outputs] in float32, computed in bfloat16 on a GPU if `mixed_precision`."""
    on_gpu = volumes.device.type == "cuda"
    with torch.autocast(volumes.device.type, dtype=torch.bfloat16, enabled=mixed_precision and on_gpu):
        outputs = model(volumes)
    return outputs.float()


def all_outputs(model: Network, volumes: Volumes, rows: Tensor, training: Mapping[str, Any]) -> Tensor:
    """Return the outputs [n, outputs] for the volumes `rows` [n], unchanged by augmentation, on the CPU."""
    batches = rows.split(int(training["batch_size"]))
    parts = [forward_outputs(model, volumes.batch(part), training["mixed_precision"]) for part in batches]
    return torch.cat(parts).cpu()


def _learner(
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    store: Store,
    sides: Sides,
    device: torch.device,
) -> Learner:
    training, seed = spec["training"], int(spec["seed"])
    both = [*sides.train, *sides.validation]
    volumes = load_volumes(store.volumes, [store.index_of(row["scan_id"]) for row in both], device)
    targets = torch.tensor([row["y"] for row in both], dtype=torch.float32)
    train_targets, validation_targets = targets.to(device), targets[len(sides.train) :]
    validation_rows = torch.arange(len(sides.train), len(both), device=device)
    changes = read_augmentation(training["augment"])
    forward = torch.compile(model) if training["compile"] else model

    def batch_loss(rows: Tensor, epoch: int, step: int) -> Tensor:
        batch = augment(volumes.batch(rows), changes, seed, (epoch, step))
        return goal.loss(forward_outputs(forward, batch, training["mixed_precision"]), train_targets[rows])

    def validate() -> dict[str, float]:
        outputs = all_outputs(forward, volumes, validation_rows, training)
        loss = float(goal.loss(outputs, validation_targets))
        return {"val_loss": loss, "val_metric": goal.metric(outputs, validation_targets)}

    return Learner(
        model, batch_loss, validate, lambda: delta_state(model), lambda state: load_delta(model, state)
    )


def _write(
    out: Path,
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    sides: Sides,
    progress: Progress,
    device: torch.device,
    edge: int,
) -> None:
    metadata = {
        "spec": json.dumps(spec, sort_keys=True),
        "offset": json.dumps(goal.offset),
        "scale": repr(goal.scale),
        "best_epoch": str(progress.best_epoch),
        "torch": torch.__version__,
    }
    save_delta(out / "delta.safetensors", model, metadata)
    write_history(out / "history.csv", progress.history)
    counts, seconds = count(model), sum(row["seconds"] for row in progress.history)
    cost = {
        "trainable": counts.encoder,
        "head": counts.head,
        "total": counts.total,
        "delta_bytes": os.path.getsize(out / "delta.safetensors"),
        "peak_memory_bytes": progress.peak_memory,
        "train_seconds": seconds,
        "start_seconds": progress.start_seconds,
        "seconds_per_epoch": seconds / len(progress.history),
        "epochs": len(progress.history),
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_loss,
        "train_subjects": len({row["subject"] for row in sides.train}),
        "train_scans": len(sides.train),
        "device": device_name(device),
        "flops_per_sample": training_flops(model, edge, device),
        "resumed": progress.resumed,
    }
    write_cost(out / "cost.json", cost)
