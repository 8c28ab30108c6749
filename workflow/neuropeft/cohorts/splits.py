"""Splits by subject: who is trained on, who chooses the epoch, who is tested on.

Nothing is drawn: subjects are ranked by a hash of their name, so that a split follows from the seed and from
who is in the cohort. With a fixed test side, the lowest ranks of each stratum are tested on, and a subject
that joins or leaves moves few others; with folds, see `cohorts.folds`, everybody is tested on once. Who is
tested on does not depend on the seed, which decides on the rest.
"""

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neuropeft.cohorts.folds import deal_folds
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.subsets import Subset
from neuropeft.tasks.values import SCAN, SEVERAL, TEXT

if TYPE_CHECKING:
    from neuropeft.tasks.base import TaskKind

TRAIN, VALIDATION, TEST = SIDES = ("train", "val", "test")
ZERO_SHOT = "zero-shot"  # the side of a cohort that is tested on and never trained on
SPLIT_COLUMNS = ("scan_id", "subject", "side", "order", "y")
# In this order and before all others, as in ADNI.
FIRST_SESSIONS = ("sc", "scr", "screening", "pre", "bl", "base", "baseline")
_FIX = "do not edit splits; start the workflow again, which makes them anew"

Row = Mapping[str, Any]
Key = TypeVar("Key", bound=Hashable)
# Subjects by target (the class or, for regression, the bin), then by sex.
Strata = dict[int, dict[str, list[str]]]


def make_split(
    rows: Sequence[Row],
    seed: int,
    test: float,
    validation: float,
    kind: "TaskKind",
    task: str,
    fold: int = 0,
    folds: int = 0,
) -> list[dict[str, Any]]:
    """Split the subjects of a task's training cohort.

    Strata are those of the kind, such as classes, and within them the sexes where they are known. A sex too
    small for its share passes it to its stratum as a whole. Every class has a subject on every side. A
    subject with several scans belongs to the stratum of its first one.

    Args:
        rows: one per scan: scan_id, subject, session, y, sex and, if known, age, text or values.
        seed: decides who validates and in which order training and validation subjects are taken.
        test: share of the subjects that is tested on, the same whatever the seed; not used with folds.
        validation: share of all subjects that validates.
        kind: what is predicted.
        task: name of the task, for errors.
        fold: the fold that is tested on, 1 to `folds`; 0 tests on the share `test`.
        folds: into how many folds subjects are dealt, the same whatever the seed.

    Returns:
        Rows with SPLIT_COLUMNS, sorted by scan_id. `order` ranks the subjects of training, and those of
        validation: any first part of them is stratified as well as it can be, and begins with one subject of
        each class. None on the test side.

    Raises:
        UserError: a class has too few subjects to be on three sides.
    """
    first = first_rows(rows)
    classes = kind.every_stratum
    group = kind.strata({subject: row["y"] for subject, row in first.items()})
    strata = _strata(first, group)
    count = len(first)
    if fold:
        fold_of = deal_folds(first, group, folds, _rank("fold"), classes, task)
        tested = {subject for subject, of_subject in fold_of.items() if of_subject == fold}
    else:
        _check_enough(strata, classes, task)
        tested = _take(strata, min(round(test * count), count - 2), classes, keep=2, rank=_rank("test"))
    rest = _without(strata, tested)
    left = count - len(tested)
    validated = _take(
        rest, min(round(validation * count), left - 1), classes, keep=1, rank=_rank(f"validation {seed}")
    )
    training = _without(rest, validated)
    order: dict[str, int] = {}
    side = dict.fromkeys(tested, TEST)
    for name, members in ((TRAIN, training), (VALIDATION, _without(rest, _members(training)))):
        ordered = _nested_order(members, _rank(f"order {seed}"))
        order |= {subject: position for position, subject in enumerate(ordered)}
        side |= dict.fromkeys(ordered, name)
    return [
        {
            "scan_id": row["scan_id"],
            "subject": row["subject"],
            "side": side[row["subject"]],
            "order": order.get(row["subject"]),
            "y": row["y"],
        }
        for row in sorted(rows, key=lambda row: row["scan_id"])
    ]


def read_usable(labels: str | Path, stored: str | Path) -> list[dict[str, str]]:
    """Return the rows of a task's labels whose scans are in the store of its training cohort."""
    scans = {row["scan_id"] for row in read_tsv(stored)}
    return [row for row in read_tsv(labels) if row["scan_id"] in scans]


def write_split(path: str | Path, rows: Sequence[Row]) -> None:
    """Check a split and write it."""
    check_split(rows, str(path))
    write_tsv(path, rows, SPLIT_COLUMNS)


def read_split(path: str | Path) -> list[dict[str, Any]]:
    """Read and check a split; `order` becomes int or None, a `y` that is one number int or float."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(read_tsv(path), start=2):
        try:
            order = None if row["order"] == MISSING else int(row["order"])
            rows.append(
                {column: row[column] for column in SPLIT_COLUMNS} | {"order": order, "y": _y(row["y"])}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: {error} is not what a split holds; {_FIX}") from error
    check_split(rows, str(path))
    return rows


def _y(text: str) -> int | float | str:
    # Several labels, the scan whose label map it is, or a text.
    if SEVERAL in text or text.startswith((SCAN, TEXT)):
        return text
    return int(text) if re.fullmatch(r"\d+", text) else float(text)


def split_digest(path: str | Path) -> str:
    """Return the SHA-256 of a split's file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_split(rows: Sequence[Row], name: str) -> None:
    """Check that nobody is on two sides and that every fraction lies within the larger ones.

    Subjects of training, and those of validation, are ranked each from 0; test subjects are not.

    Args:
        rows: rows of a split, `order` as text or value.
        name: what errors call the split, such as its file.

    Raises:
        UserError: a subject or scan is on two sides, a side is empty, or the order of a side is not 0, 1,
            ..., one rank per subject.
    """
    side_of: dict[str, str] = {}
    order_of: dict[str, object] = {}
    for row in rows:
        subject, order = row["subject"], _order(row["order"])
        if side_of.setdefault(subject, row["side"]) != row["side"]:
            sides = f"{side_of[subject]} and {row['side']}"
            raise UserError(f"{name}: subject {subject} is on two sides, {sides}; {_FIX}")
        if order_of.setdefault(subject, order) != order:
            ranks = f"{order_of[subject]} and {order}"
            raise UserError(f"{name}: subject {subject} has two ranks, {ranks}; {_FIX}")
        if (order is None) != (row["side"] == TEST):
            raise UserError(f"{name}: subject {subject} ({row['side']}) has the rank {row['order']}; {_FIX}")
    if len({row["scan_id"] for row in rows}) < len(rows):
        raise UserError(f"{name}: a scan is listed twice; {_FIX}")
    if set(side_of.values()) != set(SIDES):
        raise UserError(f"{name}: the sides are {', '.join(sorted(set(side_of.values())))}; {_FIX}")
    for side in (TRAIN, VALIDATION):
        found = [order_of[subject] for subject, on_side in side_of.items() if on_side == side]
        if set(found) != set(range(len(found))):
            raise UserError(
                f"{name}: the ranks of the {len(found)} {side} subjects are not 0 to n - 1; {_FIX}"
            )


def fraction_size(fraction: int, subjects: int) -> int:
    """Return how many of the subjects of a side `fraction` percent are, rounded up."""
    return -(-fraction * subjects // 100)


def take_subset(
    rows: Sequence[Row], subset: Subset, kind: "TaskKind", side: str = TRAIN, task: str = ""
) -> list[dict[str, Any]]:
    """Return the rows of a part of the subjects of a side; all scans of a subject come along.

    A percentage is the first subjects in the order of the side; shots are the first ones of each stratum in
    the order of training, so larger subsets of either sort hold the smaller ones. Who has labels of a tenth
    of the training subjects has those of a tenth for validation, too.

    `rows` are those of training and validation at least, and `side` is `train` or `val`.

    Raises:
        UserError: a stratum has fewer training subjects than shots are wanted.
    """
    of_side = [dict(row) for row in rows if row["side"] == side]
    subjects = len({row["subject"] for row in of_side})
    if subset.of_all:
        size = fraction_size(subset.size, subjects)
    else:
        training = [row for row in rows if row["side"] == TRAIN]
        chosen = _shots(training, subset.size, kind, task)
        if side == TRAIN:
            return [row for row in of_side if row["subject"] in chosen]
        size = -(-len(chosen) * subjects // len({row["subject"] for row in training}))
    return [row for row in of_side if int(row["order"]) < size]


def _shots(training: Sequence[Row], shots: int, kind: "TaskKind", task: str) -> set[str]:
    """Return the first subjects of each stratum of the training targets."""
    target: dict[str, Any] = {}
    for row in sorted(training, key=lambda row: (int(row["order"]), row["scan_id"])):
        target.setdefault(row["subject"], row["y"])
    members: dict[int, list[str]] = {number: [] for number in range(kind.size * kind.every_stratum)}
    stratum = kind.strata(target)
    for subject in target:
        members.setdefault(stratum[subject], []).append(subject)
    for number, subjects in sorted(members.items()):
        if len(subjects) < shots:
            raise UserError(
                f"`grid.shots`: {shots} of each {kind.stratum} of task {task!r} are wanted, but "
                f"{kind.stratum} {number} has {len(subjects)} training subjects; give at most that many"
            )
    return {subject for subjects in members.values() for subject in subjects[:shots]}


def held_out_subjects(splits: Iterable[Sequence[Row]]) -> set[str]:
    """Return the test subjects of several splits of one cohort, whom pretraining must not see."""
    return {row["subject"] for rows in splits for row in rows if row["side"] == TEST}


def first_rows(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the row of every subject's first scan: by session, see `session_key`, then by scan_id."""
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (session_key(row["session"]), row["scan_id"])):
        first.setdefault(row["subject"], row)
    return first


def session_key(session: str | None) -> list[tuple[int, str]]:
    """Return what sessions are sorted by: what `FIRST_SESSIONS` names, then 2 before 10, M06 before M12."""
    name = str(session).lower()
    if name in FIRST_SESSIONS:
        return [(FIRST_SESSIONS.index(name) - len(FIRST_SESSIONS) - 1, "")]  # below -1
    parts = re.split(r"(\d+)", "" if session in (None, MISSING) else str(session))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


# -- strata ----------------------------------------------------------------------------------------


def _strata(first: Mapping[str, Row], group: Mapping[str, int]) -> Strata:
    """Sort subjects by stratum, then by sex."""
    strata: Strata = {}
    for subject, row in first.items():
        strata.setdefault(group[subject], {}).setdefault(row["sex"] or MISSING, []).append(subject)
    return {key: strata[key] for key in sorted(strata)}


def _check_enough(strata: Strata, classes: bool, task: str) -> None:
    sizes = _sizes(strata)
    groups = {f"class {n} has": sizes.get(n, 0) for n in range(max([1, *sizes]) + 1)}
    for group, size in (groups if classes else {"there are": sum(sizes.values())}).items():
        if size < len(SIDES):
            raise UserError(
                f"task {task!r} cannot be split: {group} {size} usable subjects, but each of {len(SIDES)} "
                "sides needs one; add subjects, relax the task's `where`, or see why scans were excluded"
            )


def _take(strata: Strata, total: int, classes: bool, keep: int, rank: Callable[[str], bytes]) -> set[str]:
    """Take about `total` subjects, the lowest ranks of each stratum.

    Every class gives at least one and keeps at least `keep`.
    """
    quotas = _apportion(_sizes(strata), max(total, 1))
    taken: set[str] = set()
    for key, by_sex in strata.items():
        size = sum(map(len, by_sex.values()))
        quota = min(max(quotas[key], 1), size - keep) if classes else quotas[key]
        shares = _apportion({sex: len(by_sex[sex]) for sex in sorted(by_sex)}, quota)
        for sex, share in shares.items():
            taken.update(sorted(by_sex[sex], key=rank)[:share])
    return taken


def _apportion(sizes: Mapping[Key, int], total: int) -> dict[Key, int]:
    """Share `total` out in proportion to `sizes`, by largest remainders, earlier keys first at a tie."""
    everything = sum(sizes.values())
    shares = {key: total * size // everything for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: -(total * sizes[key] % everything))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def _nested_order(strata: Strata, rank: Callable[[str], bytes]) -> list[str]:
    """Order subjects so that each first part of them has every class and sex in its proportion."""
    groups = []
    for by_sex in strata.values():
        sexes = [sorted(subjects, key=rank) for subjects in by_sex.values()]
        groups.append(_interleave(sexes, rank))
    return _interleave(groups, rank)


def _interleave(groups: Sequence[Sequence[str]], rank: Callable[[str], bytes]) -> list[str]:
    # Member i of n comes at i/n of the way. All groups begin at 0, so even the smallest part has them all.
    places = [(i / len(group), rank(subject), subject) for group in groups for i, subject in enumerate(group)]
    return [subject for _, _, subject in sorted(places)]


def _sizes(strata: Strata) -> dict[int, int]:
    return {key: sum(map(len, by_sex.values())) for key, by_sex in strata.items()}


def _members(strata: Strata) -> set[str]:
    return {subject for by_sex in strata.values() for subjects in by_sex.values() for subject in subjects}


def _without(strata: Strata, taken: set[str]) -> Strata:
    return {
        key: {sex: [s for s in subjects if s not in taken] for sex, subjects in by_sex.items()}
        for key, by_sex in strata.items()
    }


def _rank(purpose: str) -> Callable[[str], bytes]:
    return lambda subject: hashlib.sha256(f"{purpose} {subject}".encode()).digest()


def _order(value: object) -> object:
    return None if value in (None, MISSING) else int(str(value))
