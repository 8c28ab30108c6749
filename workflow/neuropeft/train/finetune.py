"""Fine-tune one cell: a pretrained (or random) backbone, a method, a subset and a seed give a delta."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.checkpoints import load_encoder
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.methods.adapt import adapt, parameter_groups, save_delta
from neuropeft.methods.counts import attached, count, stored
from neuropeft.records import check_whole
from neuropeft.split_names import seed_and_fold, split_name
from neuropeft.store import Store, open_store
from neuropeft.subsets import Subset
from neuropeft.tasks.base import Objective
from neuropeft.train import checkpoint
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS, Progress, StateFolder
from neuropeft.train.choices import Choice, with_choice
from neuropeft.train.cost import reset_peak_memory, run_cost, share_of_peak, write_cost
from neuropeft.train.data import Volumes, load_volumes, pick_device
from neuropeft.train.flops import training_flops
from neuropeft.train.history import write_history
from neuropeft.train.labels import Sides, read_sides, shuffled, stored_sessions, subject_weights
from neuropeft.train.learner import Plan, Watch
from neuropeft.train.loop import fit, only_validated
from neuropeft.train.schedule import planned_steps
from neuropeft.train.sources import cell_sources, kind_of
from neuropeft.train.state import FINISHED, finish, forget, is_finished
from neuropeft.train.supervised import held_layers


@dataclass(frozen=True)
class Shared:
    """What the cells of a pack share: volumes, splits and base weights."""

    # Split of the cells' task for each seed and fold; their test sides are not read
    splits: Mapping[tuple[int, int], Path]
    encoder_path: Path | None  # pretrained encoder; None starts from random weights
    device: torch.device  # where training runs
    store: Store  # all volumes of the training cohort
    # {scan_id: row of `volumes`}, of the training and validation scans of all cells
    places: Mapping[str, int]
    sessions: Mapping[str, str]  # session of every stored scan
    encoder: str | None  # SHA-256 of the encoder; None from random weights

    @cached_property
    def volumes(self) -> Volumes:
        """Those of `places`; loaded when a cell is trained, which takes a while, and not if all are kept."""
        return self._loaded(self.store.volumes)

    @cached_property
    def labels(self) -> Volumes:
        """The label maps of `places`."""
        return self._loaded(self.store.labels)

    def _loaded(self, source: NDArray[Any]) -> Volumes:
        return load_volumes(source, [self.store.index_of(scan) for scan in self.places], self.device)


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
    choice: Choice | None = None,
    watch: Watch | None = None,
) -> bool:
    """Train a cell unless that is done; delta.safetensors, history.csv and cost.json are the outcome.

    Args:
        spec: What defines the cell, as `grid.cell_spec` writes it: cell, task, backbone, method, training,
            subset, seed, fold, shuffle_labels.
        shared: What it is trained on and starts from.
        state_dir: Folder of this cell alone, for its checkpoints and, in `finished`, for the outcome.
        checkpoint_seconds: Least time between checkpoints.
        began: Age of the process, in seconds, from which the time to the first step counts.
        choice: Settings that a search has chosen, in place of the cell's own.
        watch: Is shown the history after each validation, and may end the training by an exception.

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
    made_from = cell_sources(spec, split_of(shared.splits, spec), scans, shared.encoder, choice)
    state = StateFolder(Path(state_dir), checkpoint.fingerprint(made_from), spec, checkpoint_seconds)
    if is_finished(state.path, made_from):
        return False
    reset_peak_memory(shared.device)
    weights = subject_weights(sides.train)
    kind = kind_of(spec)
    goal = kind.objective(kind.array(row["y"] for row in sides.train), weights, spec["cell"])
    settings = with_choice(spec, choice)
    model = make_model(settings, shared.encoder_path).to(shared.device)
    plan = plan_of(settings, sides, began, watch)
    learner = import_module(f"neuropeft.{kind.learner}").learner(
        settings, model, goal, shared, sides, plan.steps
    )
    groups = parameter_groups(model, settings["method"])
    progress = (
        fit(learner, groups, plan, state, shared.device) if groups else only_validated(learner, shared.device)
    )
    _write(state, model, goal, sides, plan, progress, shared, choice, made_from)
    checkpoint.remove(state.path)
    return True


def plan_of(spec: Mapping[str, Any], sides: Sides, began: float = 0.0, watch: Watch | None = None) -> Plan:
    """Return how long a cell trains: as many steps with every subset as with all of the data."""
    training = spec["training"]
    interval, steps = planned_steps(training, sides.whole)
    chosen = len(sides.validation) >= int(training["min_validation"])
    return Plan(
        name=spec["cell"],
        samples=len(sides.train),
        steps=steps,
        interval=interval,
        batch_size=int(training["batch_size"]),
        warmup_steps=int(training["warmup_epochs"]) * interval,
        clip=float(training["clip"]),
        seed=int(spec["seed"]),
        lr=float(spec["method"]["lr"]),
        patience=int(training["patience"]) if chosen else None,
        began=began,
        watch=watch,
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
    kind = kind_of(spec)
    if kind.decoder:
        model = import_module(f"neuropeft.{kind.decoder}").build_predictor(
            backbone, kind.outputs, kind.decoded_by
        )
    else:
        model = build_predictor(backbone, kind.outputs, training["pool"], training["feature_norm"])
    if encoder_path is not None:
        load_encoder(encoder_path, model.backbone)
    adapt(model, spec["method"], generator)
    return model


def _write(
    state: StateFolder,
    model: Predictor,
    goal: Objective,
    sides: Sides,
    plan: Plan,
    progress: Progress,
    shared: Shared,
    choice: Choice | None,
    made_from: Mapping[str, str],
) -> None:
    out = state.path / FINISHED
    forget(out)
    metadata = {
        "spec": json.dumps(state.configuration, sort_keys=True),
        "choice": json.dumps(choice, sort_keys=True),
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
    not_its_own = others * volumes.bytes_each
    reserved = progress.peak_reserved
    held = held_layers(state.configuration["training"], model)
    cost = {
        "trainable": counts.encoder,
        "head": counts.head,
        "total": counts.total,
        "stored": stored(model),
        **attached(model),
        "delta_bytes": os.path.getsize(out / "delta.safetensors"),
        "peak_memory_bytes": progress.peak_memory - not_its_own,
        "peak_reserved_bytes": None if reserved is None else reserved - not_its_own,
        "best_step": _kept(progress)["step"],
        "best_val_loss": _kept(progress)["val_loss"],
        "train_subjects": len({row["subject"] for row in sides.train}),
        "train_scans": len(sides.train),
        **{f"chosen_{name}": value for name, value in (choice or {}).items()},
        "flops_per_sample": training_flops(model, model.backbone.takes.size, shared.device, held)
        if counts.total
        else 0,
        **run_cost(progress, plan, state.fingerprint, shared.device),
    }
    write_cost(out / "cost.json", cost | {"mfu": share_of_peak(cost)})
    finish(state.path, made_from)


def _kept(progress: Progress) -> dict[str, float]:
    """Return the row of the history whose weights were kept: the best one's, or the last one's."""
    return next((row for row in progress.history if row["step"] == progress.best_step), progress.history[-1])
