"""The one dict from which an interrupted run goes on, kept in a folder outside the declared outputs."""

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.errors import UserError
from neuropeft.files import partial_path, sync, write_text
from neuropeft.train.learner import Learner
from neuropeft.train.ranks import Ranks

CHECKPOINT_SECONDS = 120.0
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
PARTS = "parts.json"


@dataclass(frozen=True)
class StateFolder:
    """Where a run keeps its checkpoints."""

    path: Path  # folder of this run alone
    fingerprint: str  # hash of all that the run depends on
    configuration: Mapping[str, Any]  # the run's settings, stored for people
    seconds: float = CHECKPOINT_SECONDS  # least time between two checkpoints


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it beside weights, optimiser and generators.

    `step` counts the steps that are done; `loss_sum` and `interval_seconds` are those since the last
    validation. `parts` is into how many parts a batch is cut so that it fits into the memory. `peak_reserved`
    is None on the CPU, and `energy_joule` where the device does not tell.
    """

    step: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    interval_seconds: float = 0.0
    best_step: int = 0
    best_loss: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    resumed: int = 0
    parts: int = 1
    peak_memory: int = 0
    peak_reserved: int | None = None
    energy_joule: float | None = 0.0
    start_seconds: float | None = None

    @property
    def validated(self) -> int:
        """The step of the last validation; a checkpoint may come after the steps up to the next one."""
        return int(self.history[-1]["step"]) if self.history else 0


def fingerprint(*parts: object) -> str:
    """Return a hash of all that a run depends on; `parts` are what JSON can hold."""
    text = json.dumps([*parts, torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` as the newest checkpoint; the one before it stays as the fallback.

    Raises:
        UserError: The file cannot be written (disk full, no permission). The last good checkpoint is
            untouched.
    """
    partial = partial_path(folder / NEWEST)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            torch.save(dict(state), stream)
        sync(partial)
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)
        os.replace(partial, folder / NEWEST)
        sync(folder)
    except (OSError, RuntimeError) as error:
        # torch's writer hides the reason of a failed write behind a RuntimeError.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"cannot save the checkpoint {folder / NEWEST}: {_line(reason)}; free some space and start "
            "again, the run goes on from its last good checkpoint"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load(folder: Path, expected: str, quiet: bool = False) -> dict[str, Any] | None:
    """Return the newest readable checkpoint, or None to start anew; say why if one is passed over.

    Args:
        folder: Where `save` wrote.
        expected: Fingerprint of the run. Checkpoints of another one are deleted.
        quiet: Print and delete nothing (all processes but one).
    """
    unreadable = False
    for path in (folder / NEWEST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = state["fingerprint"]
        except Exception as error:  # damaged bytes can raise anything in the unpickler
            unreadable = True
            _say(f"cannot read the checkpoint {path} ({_line(error)}): discarding it", quiet)
            if not quiet:
                path.unlink(missing_ok=True)  # or it would become the fallback of the next one saved
            continue
        if found == expected:
            return state
        _say(f"the checkpoint {path} belongs to another configuration or other data: discarding it", quiet)
        if not quiet:
            remove(folder)
        break
    if unreadable:
        _say(f"no usable checkpoint in {folder}: starting anew", quiet)
    return None


def save_run(
    state: StateFolder,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Save a run, once for all its processes; each has random numbers of its own.

    Raises:
        UserError: As `save`.
    """
    generators = ranks.gather(rng_state())
    if ranks.first:
        held = {
            "fingerprint": state.fingerprint,
            "configuration": dict(state.configuration),
            "model": learner.state(),
            "optimizer": optimizer.state_dict(),
            "progress": vars(progress),
            "generators": generators,
        }
        save(state.path, held)


def resume(
    state: StateFolder, name: str, learner: Learner, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> Progress:
    """Put a run back to where its checkpoint is and return how far that is; 0 without one that fits."""
    found = load(state.path, state.fingerprint, quiet=not ranks.first)
    parts = _noted_parts(state)
    if found is None:
        return Progress(parts=parts)
    learner.load(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    if len(found["generators"]) == ranks.size:
        set_rng_state(found["generators"][ranks.rank])
    progress = Progress(**found["progress"])
    progress.resumed += 1
    progress.parts = max(progress.parts, parts)
    progress.start_seconds = None
    if ranks.first:
        print(f"{name}: going on from step {progress.step} of the checkpoint", file=sys.stderr, flush=True)
    return progress


def note_parts(state: StateFolder, parts: int) -> None:
    """Write down into how many parts a run shall cut its batches from now on.

    For processes that share a batch: one that runs out of memory cannot agree with the others any more.
    """
    write_text(state.path / PARTS, json.dumps({"fingerprint": state.fingerprint, "parts": parts}))


def _noted_parts(state: StateFolder) -> int:
    path = state.path / PARTS
    note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return int(note["parts"]) if note.get("fingerprint") == state.fingerprint else 1


def remove(folder: Path) -> None:
    """Delete the checkpoints of a run that has written its outputs, and what was noted for it."""
    for name in (NEWEST, PREVIOUS, PARTS):
        (folder / name).unlink(missing_ok=True)


def rng_state() -> dict[str, Any]:
    """Return the state of every generator that training may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned; GPU states only where the number of GPUs is the same."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]
