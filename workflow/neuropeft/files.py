"""What every stage does with files: atomic writes, TSV in and out."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuropeft.errors import UserError

MISSING = "n/a"  # BIDS' word for a missing value


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, delete it on failure.

    A reader therefore sees the old file or the new one, never half of one. The temporary name keeps the
    suffixes of `path`, because writers such as nibabel choose the format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_tsv(path: str | Path) -> list[dict[str, str]]:
    """Read a tab-separated (or, by its .csv suffix, comma-separated) table as one dict of strings per row."""
    path = Path(path)
    delimiter = "," if path.suffix == ".csv" else "\t"
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path}: {error}; give a UTF-8 TSV or CSV file") from error


def format_tsv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return `rows` as TSV text with exactly `columns`; None and absent values become `n/a`."""
    lines = ["\t".join(columns)]
    for row in rows:
        values = (row.get(column) for column in columns)
        lines.append("\t".join(MISSING if value is None else _one_line(value) for value in values))
    return "\n".join(lines) + "\n"


def write_tsv(path: str | Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write `rows` atomically as a TSV with exactly `columns`; None and absent values become `n/a`."""
    with atomic_path(path) as partial:
        partial.write_text(format_tsv(rows, columns), encoding="utf-8")


def _one_line(value: object) -> str:
    # A reason taken from an exception may hold tabs or line breaks, which would break the row.
    return " ".join(str(value).split()) if isinstance(value, str) else str(value)
