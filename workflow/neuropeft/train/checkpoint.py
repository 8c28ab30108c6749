"""The one dict from which an interrupted run goes on, kept in a folder outside the declared outputs."""

import hashlib
import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from neuropeft.errors import UserError
from neuropeft.files import atomic_path, partial_path, sync

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
PARTS = "parts.json"


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


def note_parts(folder: Path, run: str, parts: int) -> None:
    """Write down into how many parts the run with the fingerprint `run` shall cut its batches from now on.

    For processes that share a batch: one that runs out of memory cannot agree with the others any more.
    """
    with atomic_path(folder / PARTS) as partial:
        partial.write_text(json.dumps({"fingerprint": run, "parts": parts}), encoding="utf-8")


def noted_parts(folder: Path, run: str) -> int:
    """Return what `note_parts` wrote for the run with the fingerprint `run`; 1 if it wrote nothing."""
    path = folder / PARTS
    note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return int(note["parts"]) if note.get("fingerprint") == run else 1


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
