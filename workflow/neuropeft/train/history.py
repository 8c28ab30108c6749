"""The loss curve of a run as history.csv, one row a validation."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuropeft.files import atomic_path


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the rows atomically; all have the same keys, which become the columns."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
