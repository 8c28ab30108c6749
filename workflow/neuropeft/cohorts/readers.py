"""Reading a cohort where it lies: its scans, and what its tables say about them.

A BIDS root may hold 40,000 subjects, and it is read whenever the workflow starts: every folder is listed once
and nothing is globbed.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from neuropeft.config import Cohort, Simulated
from neuropeft.errors import UserError, suggest
from neuropeft.files import MISSING, expanded, read_tsv
from neuropeft.tasks.values import is_missing

T1W_SUFFIXES = ("_T1w.nii.gz", "_T1w.nii", "_T1w.mgz")
NOT_MAGNITUDE = re.compile("_part-(phase|real|imag)_")
BIDS_PATTERN = "sub-*/[ses-*/]anat/*_T1w.nii[.gz] (or .mgz)"
Labels = dict[str, str]


class Record(NamedTuple):
    """A scan as its cohort lists it; subject and session are without `sub-` and `ses-`."""

    scan_id: str
    subject: str
    session: str | None
    path: str
    labels: Labels


def read_cohort(name: str, cohort: Cohort) -> list[Record]:
    """Return the scans of a cohort, in no particular order.

    Raises:
        UserError: a table or one of its columns is missing or contradicts itself.
    """
    if cohort.bids is not None:
        return _read_bids(name, Path(cohort.bids), cohort.columns)
    if cohort.table is not None:
        return _read_table(name, Path(cohort.table), cohort.columns)
    assert cohort.simulated is not None, "a synthetic cohort has no scans to read: see grid.scanned_cohorts"
    return _read_simulated(name, cohort.simulated, cohort.columns)


def label_source(name: str, cohort: Cohort) -> str:
    """Return where a cohort's labels come from, as errors name it."""
    if cohort.bids is not None:
        return str(Path(cohort.bids, "participants.tsv"))
    return cohort.table or f"the simulated cohort {name}"


# -- BIDS ------------------------------------------------------------------------------------------


def _read_bids(name: str, root: Path, columns: Mapping[str, str]) -> list[Record]:
    participants = _participants(root / "participants.tsv", columns)
    seen: set[str] = {column for labels in participants.values() for column in labels}
    records: list[Record] = []
    unlisted: list[str] = []
    shared: list[str] = []
    spelt: dict[str, str] = {}
    for folder in _names(str(root), "sub-"):
        if (other := spelt.setdefault(folder.lower(), folder)) != folder:
            raise UserError(
                f"{root}: the folders {other!r} and {folder!r} differ only in case; give one person one "
                "folder, and two people names of their own"
            )
        subject = folder.removeprefix("sub-")
        labels = participants.get(subject, {})
        own = list(_subject_records(f"{root}/{folder}", subject, labels, columns, unlisted))
        for record in own:
            seen.update(record.labels)
        # Labels that no sessions.tsv has a word in are the subject's own.
        if labels and len({record.session for record in own if record.labels is labels}) > 1:
            shared.append(folder)
        records += own
    _check_columns(name, columns, seen, str(root / "participants.tsv"))
    scanned = {record.subject for record in records}
    without_scan, without_row = participants.keys() - scanned, scanned - participants.keys()
    if records and without_scan:
        print(
            f"cohort {name}: {len(without_scan)} of {len(participants)} subjects in participants.tsv have no "
            f"T1w scan, for example sub-{min(without_scan)}; they are left out"
        )
    if unlisted:
        print(
            f"cohort {name}: {len(unlisted)} sessions have no row in the sessions.tsv of their subject, for "
            f"example {unlisted[0]}; what that table tells of other sessions is missing for them"
        )
    if shared:
        print(
            f"cohort {name}: {len(shared)} subjects have several sessions but no sessions.tsv, for example "
            f"{shared[0]}; each of their sessions takes the age and labels of participants.tsv"
        )
    if participants and without_row:
        print(
            f"cohort {name}: participants.tsv has no row for {len(without_row)} subjects with a T1w scan, "
            f"for example sub-{min(without_row)}; its rows are for example sub-{min(participants)}"
        )
    return records


def _subject_records(
    folder: str, subject: str, labels: Labels, columns: Mapping[str, str], unlisted: list[str]
) -> Iterator[Record]:
    """Yield a subject's scans; sessions that its own table of sessions lacks are added to `unlisted`."""
    entries = _names(folder)
    by_session: dict[str, Labels] = {}
    # What changes between sessions must not be taken from the table of subjects for some of them.
    unknown: Labels = {}
    if has_table := f"sub-{subject}_sessions.tsv" in entries:
        table = Path(folder, f"sub-{subject}_sessions.tsv")
        by_session = _rows_by_id(table, "session_id", "ses-", columns)
        unknown = {column: MISSING for row in by_session.values() for column in row}
    for entry in entries:
        if entry == "anat":
            yield from _anat_records(f"{folder}/anat", subject, None, labels)
        elif entry.startswith("ses-"):
            session = entry.removeprefix("ses-")
            # The table of the sessions knows better than that of the subjects, also that a value is missing.
            of_session = labels | by_session.get(session, unknown) if has_table else labels
            scans = list(_anat_records(f"{folder}/{entry}/anat", subject, session, of_session))
            if scans and has_table and session not in by_session:
                unlisted.append(f"sub-{subject}/{entry}")
            yield from scans


def _anat_records(folder: str, subject: str, session: str | None, labels: Labels) -> Iterator[Record]:
    for file in _names(folder, "sub-"):
        suffix = next((suffix for suffix in T1W_SUFFIXES if file.endswith(suffix)), None)
        if suffix and not NOT_MAGNITUDE.search(file):
            path = f"{folder}/{file}"
            try:
                path.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"the name of the scan {path!r} is not UTF-8; rename it") from error
            yield Record(file.removesuffix(suffix), subject, session, path, labels)


def _names(folder: str, prefix: str = "") -> list[str]:
    """Return the sorted names in a folder that begin with `prefix`; none if there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror}; make it readable") from error


def _participants(table: Path, columns: Mapping[str, str]) -> dict[str, Labels]:
    return _rows_by_id(table, "participant_id", "sub-", columns) if table.is_file() else {}


def _rows_by_id(table: Path, key: str, prefix: str, columns: Mapping[str, str]) -> dict[str, Labels]:
    """Return a BIDS table's rows by their identifier without its prefix."""
    found: dict[str, Labels] = {}
    for number, row in enumerate(read_tsv(table), start=2):
        value = row.get(key)
        if value is None:
            raise UserError(f"{table}, line {number}: the column `{key}` is missing; add it (tab-separated)")
        identifier = value.strip().removeprefix(prefix)
        if identifier in found:
            raise UserError(
                f"{table}, line {number}: {value} has a second row; keep one, and put what changes between "
                "sessions into sub-<subject>/sub-<subject>_sessions.tsv"
            )
        found[identifier] = _rename(row, columns)
    return found


# -- tables ----------------------------------------------------------------------------------------


def _read_table(name: str, table: Path, columns: Mapping[str, str]) -> list[Record]:
    rows = read_tsv(table)
    if not rows:
        raise UserError(f"{table}, the table of cohort {name}, has no rows; list a scan in each")
    _check_columns(name, columns, set(_rename(rows[0], columns)), str(table))
    records: list[Record] = []
    subjects: dict[str, str] = {}
    paths: dict[str, int] = {}
    taken: set[str] = set()
    for number, raw in enumerate(rows, start=2):
        where, row = f"{table}, line {number}", _rename(raw, columns)
        path, subject = (_required(row, column, where, name) for column in ("path", "subject"))
        label = _label(subject, "sub-", where)
        other = subjects.setdefault(label.lower(), subject)
        if other.removeprefix("sub-") != subject.removeprefix("sub-"):
            raise UserError(
                f"{where}: subjects {other!r} and {subject!r} differ only in case or in characters that file "
                "names cannot hold; give one person one name, and two people names of their own"
            )
        session = row.get("session", MISSING)
        session_label = None if is_missing(session) else _label(session, "ses-", where)
        path = os.path.normpath(table.parent / expanded(path))
        if path in paths:
            raise UserError(
                f"{where}: the scan {path} is already on line {paths[path]}; remove one of the rows"
            )
        paths[path] = number
        scan_id = _free_scan_id(label, session_label, taken)
        taken.add(scan_id)
        records.append(Record(scan_id, label, session_label, path, row))
    return records


def _required(row: Labels, column: str, where: str, name: str) -> str:
    value = row.get(column, "")
    if is_missing(value):
        raise UserError(
            f"{where}: a scan needs a `{column}`; fill it in, or name its column in "
            f"`cohorts.{name}.columns.{column}`"
        )
    return value


def _label(value: str, prefix: str, where: str) -> str:
    label = re.sub(r"[^A-Za-z0-9]", "", value.removeprefix(prefix))
    if not label:
        raise UserError(f"{where}: {value!r} has no letter or digit, so it cannot name a scan; rename it")
    return label


def _free_scan_id(subject: str, session: str | None, taken: set[str]) -> str:
    # The first scan has no run number, so a second one that comes later does not rename it.
    stem = _bids_stem(subject, session)
    run, scan_id = 1, stem
    while scan_id in taken:
        run += 1
        scan_id = f"{stem}_run-{run}"
    return scan_id


def _bids_stem(subject: str, session: str | None) -> str:
    return f"sub-{subject}_ses-{session}" if session else f"sub-{subject}"


# -- simulated cohorts -----------------------------------------------------------------------------


def _read_simulated(name: str, simulated: Simulated, columns: Mapping[str, str]) -> list[Record]:
    from neuropeft.cohorts.simulate import participants, scan_name, scan_path

    records: list[Record] = []
    seen: set[str] = set()
    for person in participants(**simulated.model_dump(exclude={"effect"})):
        subject = person["participant_id"].removeprefix("sub-")
        session = person["session"] and person["session"].removeprefix("ses-")
        labels = _rename({key: str(value) for key, value in person.items() if value is not None}, columns)
        seen.update(labels)
        path = str(scan_path(person, simulated_root(name)))
        records.append(Record(scan_name(person), subject, session, path, labels))
    _check_columns(name, columns, seen, f"the simulated cohort {name}")
    return records


def simulated_root(name: str) -> str:
    """Return where the workflow puts the scans of a simulated cohort, from the working directory."""
    return f"results/simulated/{name}"


# -- shared ----------------------------------------------------------------------------------------


def _rename(row: Mapping[str, str], columns: Mapping[str, str]) -> Labels:
    """Return a table's row with the names that tasks use beside its own."""
    renamed = {name: row[actual] for name, actual in columns.items() if actual in row}
    return {key: value for key, value in row.items() if key not in columns} | renamed


def _check_columns(name: str, columns: Mapping[str, str], seen: set[str], source: str) -> None:
    """Check that some row of the cohort had the column behind every new name; `seen` has the new names."""
    for canonical, actual in columns.items():
        if canonical not in seen:
            raise UserError(
                f"`cohorts.{name}.columns.{canonical}` names the column {actual!r}, which {source} lacks: "
                f"{suggest(actual, seen)}"
            )
