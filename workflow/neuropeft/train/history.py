"""The loss curve of a run, one row a validation: lines in its log, and history.csv."""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuropeft.files import atomic_path

UNSAID = ("step", "accumulation", "seconds")  # of a row, in the line that the log gets


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows atomically; all have the same keys, which become the columns."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def report(name: str, rows: Sequence[Mapping[str, float]], steps: int) -> None:
    """Print the last of the rows of a run of `steps` steps, and how many seconds are left at most."""
    last = rows[-1]
    left = sum(row["seconds"] for row in rows) / last["step"] * (steps - last["step"])
    numbers = ", ".join(f"{key} {last[key]:.4g}" for key in last if key not in UNSAID)
    print(
        f"{name}: step {last['step']}/{steps}, {numbers}, {last['seconds']:.1f} s, at most {left:.0f} s left",
        file=sys.stderr,
        flush=True,
    )
