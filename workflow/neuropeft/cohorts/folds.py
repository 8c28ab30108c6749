"""Cross-validation: subjects are dealt into folds, the same ones whatever the seed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import MISSING
from neuropeft.grouping import grouped
from neuropeft.tasks.values import quantile_bins

KEPT = 2  # subjects of a class that a fold must leave for validation and training

Row = Mapping[str, Any]
Rank = Callable[[str], bytes]


def least_subjects(folds: int) -> int:
    """Return how many subjects a class needs to have one on each side of every fold."""
    return max(folds, next(size for size in range(3, 6) if size - -(-size // folds) >= KEPT))


def deal_folds(
    first: Mapping[str, Row], group: Mapping[str, int], folds: int, rank: Rank, classes: bool, task: str
) -> dict[str, int]:
    """Return the fold of each subject, 1 to `folds`.

    Subjects are dealt one after another, by stratum and within it by rank. Strata are the groups, the sexes
    and, where ages are known, their quantile bins; they come in the order of their lowest-ranked subject,
    so that tasks with the same subjects and the same strata get the same folds, whatever the strata are
    called. Where this leaves a small class out of a fold, the classes are dealt one after another.

    Args:
        first: row of each subject's first scan, with sex and, if known, age.
        group: class of each subject, or bin of its target.
        folds: number of folds.
        rank: hash of a subject, which decides on the order.
        classes: whether the groups are classes, each of which every fold has to test and to leave over.
        task: name of the task, for errors.

    Raises:
        UserError: a class, or a regression task, has too few subjects.
    """
    _check_enough(group, folds, classes, task)
    ages = {subject: age for subject, row in first.items() if (age := _age(row)) is not None}
    bins = quantile_bins(ages)
    in_order = sorted(first, key=rank)  # so strata, too, come in the order of their first subject
    strata = grouped(in_order, lambda one: (group[one], first[one]["sex"] or MISSING, bins.get(one)))
    dealt = _deal(strata.values(), folds)
    if not classes or _covers(dealt, group, folds):
        return dealt
    of_class = grouped(strata.values(), lambda members: group[members[0]])
    return _deal(chain.from_iterable(of_class.values()), folds)


def _deal(strata: Iterable[Sequence[str]], folds: int) -> dict[str, int]:
    return {subject: place % folds + 1 for place, subject in enumerate(chain.from_iterable(strata))}


def _covers(dealt: Mapping[str, int], group: Mapping[str, int], folds: int) -> bool:
    """Whether every fold tests a subject of each class and leaves KEPT of them."""
    tested = {(number, fold): 0 for number in group.values() for fold in range(1, folds + 1)}
    size = dict.fromkeys(group.values(), 0)
    for subject, fold in dealt.items():
        tested[group[subject], fold] += 1
        size[group[subject]] += 1
    return all(1 <= count <= size[number] - KEPT for (number, _), count in tested.items())


def _check_enough(group: Mapping[str, int], folds: int, classes: bool, task: str) -> None:
    needed = least_subjects(folds)
    sizes = {f"class {n} has": 0 for n in range(max([1, *group.values()]) + 1)}
    for number in group.values():
        sizes[f"class {number} has"] += 1
    for name, size in (sizes if classes else {"there are": len(group)}).items():
        if size < needed:
            raise UserError(
                f"task {task!r} cannot be split into {folds} folds: {name} {size} usable subjects, but "
                f"{needed} are needed for one on every side of every fold; add subjects, relax the task's "
                "`where`, or give fewer `splits.folds`"
            )


def _age(row: Row) -> float | None:
    age = row.get("age")
    return None if age in (None, "", MISSING) else float(age)
