"""What a state folder holds beside its checkpoints: the finished files, or why there are none."""

import json
from collections.abc import Sequence
from pathlib import Path

from neuropeft.errors import UserError
from neuropeft.files import atomic_path

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


def why_failed(state: Path) -> str | None:
    """Return why the last try to train the cell failed; None if it did not fail."""
    try:
        return (state / FAILED).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


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
