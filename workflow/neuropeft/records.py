"""What every job writes beside its results: the SHA-256 of its files, and what they were made from.

`<first file>.json` lies beside the files. A file that does not hold what the record says is damaged; results
whose record says other sources than there are now are out of date. Nothing here depends on Snakemake's own
records, nor on the times of files: a time only saves reading a file again that has not been touched since.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import link_or_copy, write_text

Stamp = list[int]  # what changes whenever somebody writes to a file: size, times, inode
SAID_FROM = 10e9  # bytes
AGAIN = "start the workflow again, which makes damaged results anew"


def stamp(path: Path) -> Stamp:
    """Return size, times and inode of a file, some of which change whenever somebody writes to it."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def digest(value: object) -> str:
    """Return the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give an existing file") from error


@dataclass(frozen=True)
class Record:
    """What is known of the files of a job."""

    files: Mapping[str, tuple[str, Stamp]]  # SHA-256 and stamp of each file, by its name
    made_from: Mapping[str, Any]  # a digest or a value of each thing that they were made from


def record_of(first: Path) -> Path:
    """Return where the record of the files lies of which this is the first."""
    return first.with_name(f"{first.name}.json")


def write_record(files: Sequence[Path], made_from: Mapping[str, Any]) -> None:
    """Write what the files of one folder hold, and what they were made from."""
    _write(files[0], Record({path.name: (file_digest(path), stamp(path)) for path in files}, made_from))


def _write(first: Path, record: Record) -> None:
    write_text(record_of(first), json.dumps(vars(record), sort_keys=True))


def read_record(first: Path) -> Record | None:
    """Return the record of the files of which this is the first; None if there is none that can be read."""
    try:
        told = json.loads(record_of(first).read_text(encoding="utf-8"))
        files = {name: (str(sha256), list(of_file)) for name, (sha256, of_file) in told["files"].items()}
        return Record(files, dict(told["made_from"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def written_files(results: Iterable[Path]) -> Iterator[tuple[Path, Stamp]]:
    """Yield the files of many results, with the stamps that their records have of them."""
    for first in results:
        for name, (_, at) in (record.files if (record := read_record(first)) else {}).items():
            yield first.with_name(name), at


def link_results(first: Path, out: Path) -> None:
    """Make the files that a record names, which have just been checked, also those of the folder `out`."""
    record = read_record(first)
    assert record is not None, "they have just been checked"
    for name in record.files:
        link_or_copy(first.with_name(name), out / name)
    files = {name: (sha256, stamp(out / name)) for name, (sha256, _) in record.files.items()}
    _write(out / first.name, Record(files, record.made_from))


def check_whole(first: str | Path) -> str:
    """Read a whole file, of which the record is, and return its SHA-256; without a record too.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    found, record = file_digest(first), read_record(Path(first))
    if record is not None and record.files.get(Path(first).name, (found,))[0] != found:
        raise UserError(f"{first} is damaged: it does not hold what was written; {AGAIN}")
    return found


class Digests:
    """SHA-256 of files, each read once and again only when it has been touched.

    Snakemake touches what a job has made when the job ends, so results are read once more after they have
    been written. No job reads what is saved.
    """

    def __init__(self, saved: Path | None = None) -> None:
        """Take up what an earlier process has saved, if it has."""
        self._saved, self._known, self._changed = saved, dict[str, tuple[Stamp, str]](), False
        with suppress(OSError, ValueError, TypeError, AttributeError):
            told = json.loads(saved.read_text(encoding="utf-8")) if saved else {}
            self._known = {path: (list(at), str(sha256)) for path, (at, sha256) in told.items()}

    def of(self, path: Path) -> str | None:
        """Return the SHA-256 of a file; None if it cannot be read."""
        try:
            at = stamp(path)
            known = self._known.get(str(path))
            if known is None or known[0] != at:
                self._known[str(path)] = known = (at, file_digest(path))
                self._changed = True
            return known[1]
        except (OSError, UserError):
            return None

    def save(self) -> None:
        """Save what has been read, whole; where that cannot be, the next process reads it again."""
        if self._changed and self._saved:
            with suppress(OSError):
                write_text(self._saved, json.dumps(self._known))

    def read_ahead(self, files: Iterable[tuple[Path, Stamp]]) -> None:
        """Read those of many files that have been touched since they had their stamps, several at a time."""
        touched = []
        for path, written in files:
            with suppress(OSError):
                at = stamp(path)
                if at not in (written, self._known.get(str(path), [None])[0]) and at[0] == written[0]:
                    touched.append((at[0], path))
        total = sum(size for size, _ in touched)
        if total > SAID_FROM:
            print(f"reading {total / 1e9:.0f} GB of files that have been written or moved, to check them")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(self.of, (path for _, path in touched)))

    def damage(self, first: Path) -> str | None:
        """Return which file of a job's results is not what was written, and why; None if all are."""
        return self.damage_by(first, read_record(first))

    def damage_by(self, first: Path, record: Record | None) -> str | None:
        """Return the same by a record that has been read."""
        if record is None:
            return f"{record_of(first)} is not there or damaged, which says what {first.name} holds"
        for name, (sha256, written) in record.files.items():
            path = first.with_name(name)
            try:
                if stamp(path) == written:
                    continue
            except FileNotFoundError:
                return f"{path} is not there"
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"
            if path.stat().st_size != written[0]:
                return f"{path} is damaged: it has {path.stat().st_size} bytes of {written[0]}"
            if self.of(path) != sha256:
                return f"{path} is damaged: it does not hold what was written"
        return None

    def written(self, path: Path) -> str | None:
        """Return the SHA-256 that a file had when it was written, or has, if it has no record of its own."""
        record = read_record(path)
        return record.files[path.name][0] if record and path.name in record.files else self.of(path)
