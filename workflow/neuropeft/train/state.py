"""What a state folder holds beside its checkpoints: the finished files, or why there are none."""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import atomic_path, link_or_copy

CELL_FILES = ("delta.safetensors", "history.csv", "cost.json")  # the last one is written last
FINISHED, FAILED = "finished", "failed.txt"


def is_finished(state: Path, fingerprint: str | None = None, files: Sequence[str] = CELL_FILES) -> bool:
    """Whether the training has come to its end, with this fingerprint if one is given.

    Args:
        state: Its folder.
        fingerprint: Hash of all that it depends on.
        files: What it leaves; cost.json is the last.
    """
    try:
        cost = json.loads((state / FINISHED / files[-1]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    complete = all((state / FINISHED / name).is_file() for name in files)
    return complete and (fingerprint is None or cost["fingerprint"] == fingerprint)


def trained_spec(delta: Path) -> dict[str, Any] | None:
    """Return the settings that a cell was trained with, from the header of its safetensors file, or None."""
    try:
        with delta.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        return json.loads(header["__metadata__"]["spec"])
    except (OSError, ValueError, KeyError, struct.error):
        return None  # deleted or replaced this moment, or damaged: not a cell that is done


def take_over(state: Path, spec: Mapping[str, Any], out: Path) -> None:
    """Make the files that a cell's training left, also those of `out`.

    Raises:
        UserError: The cell was trained with other settings than `spec`, or is not there.
    """
    finished = state / FINISHED
    if finished.is_dir():
        os.listdir(finished)  # a network file system may remember what was there before
    if trained_spec(finished / CELL_FILES[0]) != spec:
        raise UserError(
            f"{finished} is not there or holds a cell trained with other settings, perhaps because the "
            "configuration was changed while jobs waited; start again with --forcerun finetune, which trains "
            "no cell that is right already"
        )
    for name in CELL_FILES:
        link_or_copy(finished / name, out / name)


def forget(finished: Path, files: Sequence[str] = CELL_FILES) -> None:
    """Make what an earlier training left count no more, before its files are replaced one after another."""
    (finished / files[-1]).unlink(missing_ok=True)


def why_failed(state: Path) -> str | None:
    """Return why the last try to train the cell failed; None if it did not fail."""
    try:
        return (state / FAILED).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{state / FAILED} cannot be read: {error.strerror}"


def note_failure(state: Path, reason: str) -> None:
    """Write down why the cell could not be trained."""
    try:
        with atomic_path(state / FAILED) as partial:
            partial.write_text(reason + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{reason} (and {state / FAILED} cannot be written: {error.strerror})") from error


def forget_failure(state: Path) -> None:
    """Forget an earlier failure, since the cell is tried again."""
    (state / FAILED).unlink(missing_ok=True)
