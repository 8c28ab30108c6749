"""Pretrain an encoder on the store of a cohort, whatever the kind of pretraining."""

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuropeft import pretraining
from neuropeft.backbones.base import Backbone
from neuropeft.backbones.checkpoints import load_encoder, save_encoder
from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, TISSUE
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv, sweep
from neuropeft.pretraining.base import Pretraining
from neuropeft.records import check_whole, link_results
from neuropeft.store import open_store
from neuropeft.train import checkpoint, ranks
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS, Progress, StateFolder
from neuropeft.train.cost import run_cost, write_cost
from neuropeft.train.data import derive_seed, load_volumes, pick_device
from neuropeft.train.diagnose import Targets
from neuropeft.train.history import write_history
from neuropeft.train.learner import Plan
from neuropeft.train.lock import lock
from neuropeft.train.loop import fit
from neuropeft.train.pretraining_run import Run, learner_of
from neuropeft.train.ranks import Ranks
from neuropeft.train.signals import stop_request
from neuropeft.train.sources import pretraining_scans, pretraining_sources
from neuropeft.train.state import FINISHED, finish, forget, is_finished

ENCODER, COST = "encoder.safetensors", "cost.json"
KEPT_FILES = {percent: f"encoder-{percent}.safetensors" for percent in pretraining.KEPT}
VALIDATIONS = 25  # of a pretraining
NOT_LEARNT = ("step", "lr", "train_loss", "accumulation", "seconds")  # of a row of the history


def kind_of(spec: Mapping[str, Any]) -> type[Pretraining]:
    """Return the kind of a pretraining."""
    module = importlib.import_module(f"neuropeft.{pretraining.module_of(spec['kind'])}")
    found: type[Pretraining] = module.KIND
    return found


def files(kind: type[Pretraining]) -> tuple[str, ...]:
    """Return what a pretraining of this kind leaves."""
    return (ENCODER, "history.csv", *kind.files, COST, *KEPT_FILES.values())


def pretrain(
    spec: Mapping[str, Any],
    store_dir: str | Path,
    held_out_splits: Sequence[str | Path],
    out_dir: str | Path,
    state_dir: str | Path,
    *,
    people: str | Path | None = None,
    start: str | Path | None = None,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Pretrain an encoder; write encoder.safetensors, history.csv, cost.json and what its kind adds.

    What has been trained before with the same settings, code and data is not trained again. Started by
    torchrun, the processes share each batch, and the loss curve is that of one process up to rounding.

    Args:
        spec: What defines the pretraining, as `grid.pretraining_spec` writes it: kind, backbone, steps,
            warmup_steps, batch_size (over all processes), lr, weight_decay, betas, clip, augment, seed,
            validation_share, mixed_precision, compile, and the kind's own settings.
        store_dir: Store of the cohort.
        held_out_splits: Splits whose test subjects are left out.
        out_dir: Folder for the outputs.
        state_dir: Folder of this pretraining alone, for its checkpoints and, in `finished`, for what it
            wrote; while another process trains there, this one waits.
        people: Table of the scans' age and sex, which are probed for and never trained on.
        start: Encoder of another pretraining to go on from.
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
            if team.first:
                sweep(out)
            team.wait()
            _pretrain(
                spec, Path(store_dir), held_out_splits, state, people, start, pick_device(device or gpu),
                checkpoint_seconds, team,
            )  # fmt: skip
            if team.first:
                link_results(state / FINISHED / ENCODER, out)
            team.wait()
        # Not after an error, which the others may not have had: NCCL would wait for them here forever.
        ranks.leave(team)


def _pretrain(
    spec: Mapping[str, Any],
    store_dir: Path,
    held_out_splits: Sequence[str | Path],
    state_dir: Path,
    people: str | Path | None,
    start: str | Path | None,
    device: torch.device,
    checkpoint_seconds: float,
    team: Ranks,
) -> None:
    train, validation = pretraining_scans(spec, store_dir / "scans.tsv", held_out_splits)
    if spec["batch_size"] < team.size:
        raise UserError(
            f"batch_size {spec['batch_size']} is less than {team.size} processes; give a larger one"
        )
    store = open_store(store_dir)
    rows = [*train, *validation]
    scans = [row["scan_id"] for row in rows]
    factors = ANATOMY_FACTORS if (store_dir / TISSUE).is_file() else ()  # else the cohort is not synthetic
    made_from = pretraining_sources(spec, train, validation, None if start is None else check_whole(start))
    state = StateFolder(state_dir, checkpoint.fingerprint(made_from), spec, checkpoint_seconds)
    done = team.first and is_finished(state_dir, made_from, files(kind_of(spec)))
    if team.any(done)[0]:
        return
    volumes = load_volumes(store.volumes, [store.index_of(scan) for scan in scans], device)
    run = Run(spec, volumes, rows, len(train), team, store_dir, _known(rows, people, factors))
    torch.manual_seed(int(spec["seed"]))
    kind = kind_of(spec)(run)
    if start is not None:
        load_encoder(start, kind.network.encoder)
    kind.network.to(device)
    if not team.first:
        # Other scans, other stochastic depth.
        torch.manual_seed(derive_seed(int(spec["seed"]), "rank", team.rank))
    steps = int(spec["steps"])
    plan = Plan(
        name="pretraining",
        samples=len(train),
        steps=steps,
        interval=-(-steps // VALIDATIONS),
        batch_size=int(spec["batch_size"]),
        warmup_steps=int(spec["warmup_steps"]),
        clip=float(spec["clip"]),
        seed=int(spec["seed"]),
        lr=float(spec["lr"]),
    )
    betas = (float(spec["betas"][0]), float(spec["betas"][1]))
    groups = _groups(spec, kind.network)

    def keep(step: int) -> None:
        for percent, name in KEPT_FILES.items():
            if team.first and step + 1 == max(1, steps * percent // 100):
                save_encoder(state.path / name, kind.network.encoder, {"steps": str(step + 1)})

    progress = fit(replace(learner_of(kind, run), after_step=keep), groups, plan, state, device, betas, team)
    if team.first:
        _write(state, kind, run, plan, progress)
        finish(state_dir, made_from, files(kind_of(spec)))
        checkpoint.remove(state_dir)


def _known(rows: Sequence[Mapping[str, str]], people: str | Path | None, factors: Sequence[str]) -> Targets:
    """Return what is probed for: age and sex (0, 1), where the cohort's table has them, and known factors."""
    known = {name: [_number(row.get(name)) for row in rows] for name in factors}
    if people is None:
        return known
    of_scan = {row["scan_id"]: row for row in read_tsv(people)}
    table = [of_scan.get(row["scan_id"], {}) for row in rows]
    known["age"] = [_number(row.get("age")) for row in table]
    known["sex"] = [{"F": 0.0, "M": 1.0}.get(row.get("sex", ""), math.nan) for row in table]
    return known


def _number(text: str | None) -> float:
    return math.nan if text in (None, MISSING) else float(text)


def _groups(spec: Mapping[str, Any], model: nn.Module) -> list[dict[str, Any]]:
    # No decay on biases and norms, as in the original.
    groups = []
    for decayed in (True, False):
        parameters = [value for value in model.parameters() if (value.ndim > 1) == decayed]
        decay = spec["weight_decay"] if decayed else 0.0
        groups.append({"params": parameters, "lr": spec["lr"], "weight_decay": decay})
    return groups


def _write(state: StateFolder, kind: Pretraining, run: Run, plan: Plan, progress: Progress) -> None:
    out, history = state.path / FINISHED, progress.history
    forget(out, files(type(kind)))
    train, validation = run.rows[: run.train], run.rows[run.train :]
    numbers = {
        "steps": str(progress.step),
        "scans": str(len(train)),
        "val_loss": repr(history[-1]["val_loss"]),
    }
    encoder: Backbone = kind.network.encoder
    save_encoder(out / ENCODER, encoder, {"pretraining": run.spec["kind"], **numbers})
    for name in KEPT_FILES.values():
        (state.path / name).replace(out / name)
    write_history(out / "history.csv", history)
    kind.write(out)
    learnt = {name: value for name, value in history[-1].items() if name not in NOT_LEARNT}
    cost = {
        "encoder": sum(value.numel() for value in encoder.parameters()),
        "total": sum(value.numel() for value in kind.network.parameters()),
        "peak_memory_bytes": progress.peak_memory,
        "peak_reserved_bytes": progress.peak_reserved,
        "train_subjects": len({row["subject"] for row in train}),
        "train_scans": len(train),
        "validation_scans": len(validation),
        "processes": run.ranks.size,
        **learnt,
        **kind.verdict(learnt),
    }
    write_cost(out / COST, cost | run_cost(progress, plan, state.fingerprint, run.device))
