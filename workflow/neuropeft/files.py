"""What every stage does with files: paths as people write them, atomic writes, TSV in and out."""

import csv
import errno
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from neuropeft.errors import UserError

MISSING = "n/a"  # BIDS' word for a missing value
_PARTIAL = ".partial-"  # begins the names of files that are being written
_DAY = 24 * 60 * 60  # seconds


def expanded(path: str) -> str:
    """Return a path that people wrote with its variables and its `~` filled in."""
    return os.path.expanduser(os.path.expandvars(path))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, delete it on failure.

    A reader therefore sees the old file or the new one, never half of one, even after a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text atomically, as UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_path(path: Path) -> Path:
    """Return the temporary sibling of a path, under a name that no other process of any node gives.

    It keeps the suffixes of `path`, because writers such as nibabel choose the format by them.
    """
    return path.with_name(f"{_PARTIAL}{os.uname().nodename}-{os.getpid()}-{path.name}")


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can, for a folder
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete what killed jobs left half written in a folder and those within it.

    That is what a process of this machine began that is no more, or anybody more than a day ago.
    """
    for partial in folder.rglob(f"{_PARTIAL}*"):
        own = re.match(rf"{_PARTIAL}{re.escape(os.uname().nodename)}-(\d+)-", partial.name)
        with suppress(FileNotFoundError):
            is_old = time.time() - partial.stat(follow_symlinks=False).st_mtime > _DAY
            if is_old or (own and not _is_alive(int(own[1]))):
                partial.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
    write_text(path, format_tsv(rows, columns))


def _one_line(value: object) -> str:
    # A reason taken from an exception may hold tabs or line breaks, which would break the row.
    text = re.sub(r"[\t\r\n]+", " ", str(value)).strip()
    return '"' + text.replace('"', '""') + '"' if text.startswith('"') else text  # as csv reads it back
