"""What a state folder holds beside its checkpoints: the finished files, or why there are none."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import write_text
from neuropeft.records import Digests, link_results, read_record, record_of, write_record
from neuropeft.train.sources import differing

CELL_FILES = ("delta.safetensors", "history.csv", "cost.json")
FINISHED, FAILED = "finished", "failed.txt"


def finish(state: Path, made_from: Mapping[str, Any], files: Sequence[str] = CELL_FILES) -> None:
    """Write, last of all, the record by which what a training has left counts as finished."""
    write_record([state / FINISHED / name for name in files], made_from)


def forget(finished: Path, files: Sequence[str] = CELL_FILES) -> None:
    """Make what an earlier training left count no more, before its files are replaced one after another."""
    record_of(finished / files[0]).unlink(missing_ok=True)


def is_finished(
    state: Path, made_from: Mapping[str, Any] | None = None, files: Sequence[str] = CELL_FILES
) -> bool:
    """Whether a training has come to its end, from these sources if given; all files are checked."""
    first = state / FINISHED / files[0]
    record = read_record(first)
    if record is None or record.files.keys() != set(files):
        return False
    if made_from is not None and differing(record.made_from, made_from):
        return False
    return Digests().damage_by(first, record) is None


def take_over(state: Path, made_from: Mapping[str, Any], out: Path) -> None:
    """Make the files that a cell's training left, also those of `out`.

    Raises:
        UserError: The cell is not there, is damaged, or was trained from other things than these.
    """
    finished = state / FINISHED
    if finished.is_dir():
        os.listdir(finished)  # a network file system may remember what was there before
    record = read_record(finished / CELL_FILES[0])
    if record is None or not is_finished(state):
        raise UserError(f"{finished} holds no finished cell, or a damaged one; start again, which trains it")
    if other := differing(record.made_from, made_from):
        raise UserError(
            f"{finished} holds a cell that was trained with other {' and '.join(other)}, perhaps because the "
            "configuration was changed while jobs waited; start again, which trains it"
        )
    link_results(finished / CELL_FILES[0], out)


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
        write_text(state / FAILED, reason + "\n")
    except OSError as error:
        raise UserError(f"{reason} (and {state / FAILED} cannot be written: {error.strerror})") from error


def forget_failure(state: Path) -> None:
    """Forget an earlier failure, since the cell is tried again."""
    (state / FAILED).unlink(missing_ok=True)
