"""Fine-tune one cell: a pretrained (or random) backbone, a method, a subset and a seed give a delta."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.checkpoints import load_encoder
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.methods.adapt import adapt, delta_state, load_delta, method_of, parameter_groups, save_delta
from neuropeft.methods.counts import attached, count
from neuropeft.records import check_whole
from neuropeft.split_names import seed_and_fold, split_name
from neuropeft.store import Store, open_store
from neuropeft.subsets import Subset
from neuropeft.tasks.base import Array, Objective, TaskKind
from neuropeft.train import checkpoint
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS, Progress, StateFolder
from neuropeft.train.cost import reset_peak_memory, run_cost, write_cost
from neuropeft.train.data import Volumes, as_input, load_volumes, pass_order, pick_device
from neuropeft.train.flops import training_flops
from neuropeft.train.gradients import summed_gradients
from neuropeft.train.graphs import Recorded
from neuropeft.train.history import write_history
from neuropeft.train.labels import Sides, read_sides, shuffled, stored_sessions, subject_weights
from neuropeft.train.learner import Batch, Learner, Plan
from neuropeft.train.loop import fit
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.sources import cell_sources, kind_of
from neuropeft.train.state import FINISHED, finish, forget, is_finished

MEASURED = 512  # training scans at most that tell the statistics of features before a validation
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shared:
    """What the cells of a pack share: volumes, splits and base weights.

    Attributes:
        splits: Split of the cells' task for each seed and fold; their test sides are not read.
        encoder_path: Pretrained encoder; None starts from random weights.
        device: Where training runs.
        store: All volumes of the training cohort.
        places: {scan_id: row of `volumes`}, of the training and validation scans of all cells.
        sessions: Session of every stored scan.
        encoder: SHA-256 of the encoder; None from random weights.
    """

    splits: Mapping[tuple[int, int], Path]
    encoder_path: Path | None
    device: torch.device
    store: Store
    places: Mapping[str, int]
    sessions: Mapping[str, str]
    encoder: str | None

    @cached_property
    def volumes(self) -> Volumes:
        """Those of `places`; loaded when a cell is trained, which takes a while, and not if all are kept."""
        return load_volumes(
            self.store.volumes, [self.store.index_of(scan) for scan in self.places], self.device
        )


def open_shared(
    specs: Iterable[Mapping[str, Any]],
    store_dir: str | Path,
    splits: Iterable[str | Path],
    encoder_path: str | Path | None,
    device: str | None = None,
) -> Shared:
    """Load what the cells `specs` share; see `Shared`. The files of `splits` are called as in `split_names`.

    Raises:
        UserError: An input is missing or wrong.
    """
    store = open_store(store_dir)
    sessions = stored_sessions(store_dir)
    of_split = {seed_and_fold(path): Path(path) for path in splits}
    used: dict[str, None] = {}
    for spec in specs:
        sides = read_sides(split_of(of_split, spec), Subset.parse(spec["subset"]), kind_of(spec), sessions)
        used |= dict.fromkeys(row["scan_id"] for row in (*sides.train, *sides.validation))
    return Shared(
        of_split,
        None if encoder_path is None else Path(encoder_path),
        pick_device(device),
        store,
        {scan: place for place, scan in enumerate(used)},
        sessions,
        None if encoder_path is None else check_whole(encoder_path),
    )


def finetune(
    spec: Mapping[str, Any],
    shared: Shared,
    state_dir: str | Path,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    began: float = 0.0,
    rates: Mapping[str, float] | None = None,
) -> bool:
    """Train a cell unless that is done; delta.safetensors, history.csv and cost.json are the outcome.

    Args:
        spec: What defines the cell, as `grid.cell_spec` writes it: cell, task, backbone, method, training,
            subset, seed, fold, shuffle_labels.
        shared: What it is trained on and starts from.
        state_dir: Folder of this cell alone, for its checkpoints and, in `finished`, for the outcome.
        checkpoint_seconds: Least time between checkpoints.
        began: Age of the process, in seconds, from which the time to the first step counts.
        rates: Learning rates that a search has chosen, in place of the method's own: lr and head_lr.

    Returns:
        False if the cell had been trained before with the same settings, code and data.

    Raises:
        UserError: An input is missing or wrong, or the loss is not finite.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1.
    """
    sides = read_sides(
        split_of(shared.splits, spec), Subset.parse(spec["subset"]), kind_of(spec), shared.sessions
    )
    if spec["shuffle_labels"]:
        sides = shuffled(sides, int(spec["seed"]))
    scans = shared.store.path / "scans.tsv"
    made_from = cell_sources(spec, split_of(shared.splits, spec), scans, shared.encoder, rates)
    state = StateFolder(Path(state_dir), checkpoint.fingerprint(made_from), spec, checkpoint_seconds)
    if is_finished(state.path, made_from):
        return False
    reset_peak_memory(shared.device)
    weights = subject_weights(sides.train)
    kind = kind_of(spec)
    goal = kind.objective(kind.array(row["y"] for row in sides.train), weights, spec["cell"])
    model = make_model(spec, shared.encoder_path).to(shared.device)
    plan = _plan(spec, sides, began)
    learner = _learner(spec, model, goal, shared, sides, plan.steps)
    progress = fit(
        learner, parameter_groups(model, {**spec["method"], **(rates or {})}), plan, state, shared.device
    )
    _write(state, model, goal, sides, progress, shared, rates, made_from)
    checkpoint.remove(state.path)
    return True


def _plan(spec: Mapping[str, Any], sides: Sides, began: float) -> Plan:
    """Return how long a cell trains: as many steps with every subset as with all of the data."""
    training = spec["training"]
    interval = -(-sides.whole // int(training["batch_size"]))  # steps of a pass over all training scans
    epochs = max(int(training["epochs"]), -(-int(training["min_steps"]) // interval))
    chosen = len(sides.validation) >= int(training["min_validation"])
    return Plan(
        name=spec["cell"],
        samples=len(sides.train),
        steps=epochs * interval,
        interval=interval,
        batch_size=int(training["batch_size"]),
        warmup_steps=int(training["warmup_epochs"]) * interval,
        clip=float(training["clip"]),
        seed=int(spec["seed"]),
        patience=int(training["patience"]) if chosen else None,
        began=began,
    )


def split_of(splits: Mapping[tuple[int, int], Path], spec: Mapping[str, Any]) -> Path:
    """Return the split of a cell's seed and fold."""
    place = int(spec["seed"]), int(spec["fold"])
    try:
        return splits[place]
    except KeyError:
        missing = f"{split_name(*place)}.tsv"
        raise UserError(f"{spec['cell']}: its split is not given; add {missing}") from None


def make_model(spec: Mapping[str, Any], encoder_path: str | Path | None) -> Predictor:
    """Return the adapted network of a cell, on the CPU.

    Its random weights follow from the cell's seed: a delta does not hold those that stay frozen.
    """
    generator = torch.manual_seed(int(spec["seed"]))
    training = spec["training"]
    backbone = {**spec["backbone"], "drop_path": training["drop_path"]}
    model = build_predictor(backbone, kind_of(spec).outputs, training["pool"], training["feature_norm"])
    if encoder_path is not None:
        load_encoder(encoder_path, model.backbone)
    adapt(model, spec["method"], generator)
    return model


def forward_outputs(model: Network, volumes: Tensor, mixed_precision: bool) -> Tensor:
    """Return the outputs [B, outputs] in float32, computed in bfloat16 on a GPU if `mixed_precision`."""
    on_gpu = volumes.device.type == "cuda"
    enabled = mixed_precision and on_gpu
    # No cache: a pass uses each weight once, and a recorded one must not find its casts there.
    with torch.autocast(volumes.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
        outputs = model(volumes)
    return outputs.float()


def _watched(kind: TaskKind, goal: Objective, outputs: Tensor, targets: Array) -> float:
    """Return the first metric of outputs [n, outputs], which a person wants to watch."""
    score = kind.scores(outputs, goal.offset, goal.scale).double().numpy()  # [n, columns]
    score = score if score.shape[1] > 1 else score[:, 0]
    metric = kind.metrics[0]
    return float(metric.value(targets, score, np.full(len(targets), np.nan), None))


def all_outputs(
    model: Network, volumes: Volumes, rows: Tensor, mixed_precision: bool, size: BatchSize
) -> Tensor:
    """Return the outputs [n, outputs] for the volumes `rows` [n], unchanged by augmentation, on the CPU.

    Raises:
        UserError: The memory of the GPU does not suffice for one scan.
    """

    def outputs(batch: Tensor) -> Tensor:
        return forward_outputs(model, volumes.batch(batch), mixed_precision)

    return torch.cat(in_batches(outputs, rows, size)).cpu()


def _learner(
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    shared: Shared,
    sides: Sides,
    steps: int,
) -> Learner:
    training, seed = spec["training"], int(spec["seed"])
    volumes, device = shared.volumes, shared.device
    both = [*sides.train, *sides.validation]
    # Where the volumes are, so that finding them does not wait for the device.
    places = torch.tensor([shared.places[row["scan_id"]] for row in both], device=volumes.data.device)
    kind = kind_of(spec)
    known = kind.array(row["y"] for row in both)
    targets = torch.from_numpy(known).float()  # [scans, ...]
    weights = torch.tensor(subject_weights(sides.train), device=device)
    train_targets, validation_targets = targets.to(device), targets[len(sides.train) :]
    validation_places = places[len(sides.train) :]
    changes, method = read_augmentation(training["augment"]), method_of(spec["method"])
    mixed_precision, at_once = training["mixed_precision"], BatchSize(int(training["batch_size"]))
    batch_norms = any(isinstance(module, nn.BatchNorm3d) for module in model.backbone.modules())
    network = torch.compile(model) if training["compile"] else model
    forward: Callable[[Tensor], Tensor] = partial(forward_outputs, network, mixed_precision=mixed_precision)
    # What is compiled launches few kernels anyway.
    if model.backbone.recordable and not (batch_norms or training["compile"]):
        forward = Recorded(model, forward, int(training["batch_size"]))
    batches = TrainingBatches(volumes, places[: len(sides.train)], int(training["batch_size"]), seed)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        changed = augment(as_input(batch.volumes), changes, seed, batch.step, batch.first, batch.total)
        here = batch.rows.to(device, non_blocking=True)
        total = (weights[here] * goal.loss(forward(changed), train_targets[here])).sum()
        penalty = method.penalty(model.backbone, spec["method"])
        return total if penalty is None else total + len(here) * penalty, len(here)

    def unchanged_loss(rows: Tensor) -> Tensor:
        outputs, here = forward_outputs(model, volumes.batch(places[rows]), mixed_precision), rows.to(device)
        return (weights[here] * goal.loss(outputs, train_targets[here])).sum()

    some = pass_order(len(sides.train), seed, 0)[:MEASURED]
    measured = places[some.to(places.device)]

    def measure() -> Tensor:
        # As training sees them: by their running statistics, which lag behind, batch norms give others.
        model.train(batch_norms)
        with torch.inference_mode():
            tokens = all_outputs(model.backbone.tokens, volumes, measured, mixed_precision, at_once)
        model.head.measure(tokens)
        model.eval()
        return tokens

    def validate() -> dict[str, float]:
        if training["feature_norm"] == "refreshed":
            measure()
        # By the network as predictions use it, not as it is compiled.
        outputs = all_outputs(model, volumes, validation_places, mixed_precision, at_once)
        return {
            "val_loss": float(goal.loss(outputs, validation_targets).mean()),
            "val_metric": _watched(kind, goal, outputs, known[len(sides.train) :]),
        }

    tokens = measure()
    if training["head_start"] == "probe":
        from neuropeft.train.probe_start import start_from_probe  # scikit-learn takes seconds to import

        rows = [sides.train[place] for place in some.tolist()]
        subjects = [row["subject"] for row in rows]
        start_from_probe(model.head, kind, tokens, kind.array(row["y"] for row in rows), subjects, goal)
    if method.wants_gradients(spec["method"]):
        everyone = torch.arange(len(sides.train), device=places.device)
        found = summed_gradients(model, unchanged_loss, everyone, at_once)
        method.select(model.backbone, spec["method"], found)
    return Learner(
        model,
        batches.get,
        loss,
        validate,
        lambda: delta_state(model),
        lambda state: load_delta(model, state),
        lambda step: method.before_step(model.backbone, spec["method"], step, seed),
        lambda step: method.after_step(model.backbone, spec["method"], step, steps),
    )


def _write(
    state: StateFolder,
    model: Predictor,
    goal: Objective,
    sides: Sides,
    progress: Progress,
    shared: Shared,
    rates: Mapping[str, float] | None,
    made_from: Mapping[str, str],
) -> None:
    out = state.path / FINISHED
    forget(out)
    metadata = {
        "spec": json.dumps(state.configuration, sort_keys=True),
        "offset": json.dumps(goal.offset),
        "scale": repr(goal.scale),
        "best_step": str(_kept(progress)["step"]),
        "torch": torch.__version__,
        "made_from": json.dumps(made_from, sort_keys=True),
    }
    save_delta(out / "delta.safetensors", model, metadata)
    write_history(out / "history.csv", progress.history)
    counts = count(model)
    # The volumes that only other cells of the pack use are not this cell's memory.
    volumes = shared.volumes
    others = len(volumes) - len(sides.train) - len(sides.validation) if volumes.index is None else 0
    cost = {
        "trainable": counts.encoder,
        "head": counts.head,
        "total": counts.total,
        **attached(model),
        "delta_bytes": os.path.getsize(out / "delta.safetensors"),
        "peak_memory_bytes": progress.peak_memory - others * volumes.bytes_each,
        "best_step": _kept(progress)["step"],
        "best_val_loss": _kept(progress)["val_loss"],
        "train_subjects": len({row["subject"] for row in sides.train}),
        "train_scans": len(sides.train),
        **{f"chosen_{name}": value for name, value in (rates or {}).items()},
        "flops_per_sample": training_flops(model, volumes.data.shape[-1], shared.device),
    }
    write_cost(out / "cost.json", cost | run_cost(progress, state.fingerprint, shared.device))
    finish(state.path, made_from)


def _kept(progress: Progress) -> dict[str, float]:
    """Return the row of the history whose weights were kept: the best one's, or the last one's."""
    return next((row for row in progress.history if row["step"] == progress.best_step), progress.history[-1])
