"""What every stage does with files: paths as people write them, atomic writes, TSV in and out."""

import csv
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuropeft.errors import UserError

MISSING = "n/a"  # BIDS' word for a missing value


def expanded(path: str) -> str:
    """Return a path that people wrote with its variables and its `~` filled in."""
    return os.path.expanduser(os.path.expandvars(path))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, delete it on failure.

    A reader therefore sees the old file or the new one, never half of one. The temporary name keeps the
    suffixes of `path`, because writers such as nibabel choose the format by them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nodes that share a file system may give two processes one number.
    partial = path.with_name(f".partial-{os.uname().nodename}-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or its copy where there are no hard links; date it now."""
    with atomic_path(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        os.utime(partial)


def read_tsv(path: str | Path) -> list[dict[str, str]]:
    """Read a tab-separated (or, by its .csv suffix, comma-separated) table as one dict of strings per row.

    Rows without any value, and empty cells beyond the header, as spreadsheets leave them, are left out.

    Raises:
        UserError: It cannot be read, two columns have one name, a row has more or fewer cells than the
            header, or a quotation mark is never closed, which would swallow rows.
    """
    path = Path(path)
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, delimiter=delimiter, skipinitialspace=delimiter == ",", strict=True)
            header = next(lines, [])
            if len(header) == 1 and (other := re.search(r"[;,\t]", header[0])):
                raise csv.Error(f"its columns are parted by {other.group()!r}, not by {delimiter!r}")
            twice = [name for name, count in Counter(header).items() if name and count > 1]
            if twice:
                raise UserError(f"{path} has two columns {twice[0]!r}; rename or remove one")
            rows = ((cells, f"{path}, line {lines.line_num}") for cells in lines if any(cells))
            return [dict(zip(header, _fitted(cells, len(header), at), strict=True)) for cells, at in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path}: {error}; give a UTF-8 TSV or CSV file") from error


def _fitted(cells: list[str], columns: int, where: str) -> list[str]:
    """Return the cells of a row that stand under a header, of which there must be one for each column."""
    if len(cells) < columns or any(cells[columns:]):
        raise UserError(
            f"{where}: {len(cells)} cells under a header of {columns} columns; give every column its cell, "
            "n/a where a value is missing"
        )
    return cells[:columns]


def last_lines(path: Path, size: int = 65536) -> list[str]:
    """Return the last lines of a text file that hold something, of its last `size` bytes; none if it is gone.

    What a progress bar wrote over on its line is left out.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))
    return [line.strip() for line in lines if line.strip()]


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
    text = re.sub(r"[\t\r\n]+", " ", str(value)).strip()
    return '"' + text.replace('"', '""') + '"' if text.startswith('"') else text  # as csv reads it back
