"""What the cells of tables mean: numbers, ages, sexes; bins of numbers; and what errors about them name."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from neuropeft.errors import UserError

if TYPE_CHECKING:
    from neuropeft.cohorts.index import Scan

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
OLDEST = 120  # years
SUBJECTS_PER_BIN = 10
MOST_BINS = 5  # the coarser, the more do the test sides of several tasks agree
SEVERAL = "|"  # between the numbers of a target that has several
SCAN = "sub-"  # before a target that is the name of a scan
TEXT = "text: "  # before a target that is a text
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


class Place(NamedTuple):
    """What every error about targets names: the task, the cohort and the tables that were read.

    `trains` is whether the task is trained on this cohort.
    """

    task: str
    cohort: str
    source: str
    trains: bool

    def error(self, key: str, problem: str, fix: str) -> UserError:
        """Return the error that a key of the task's settings meets in these tables."""
        return UserError(
            f"`tasks.{self.task}.{key}`: {problem} in cohort {self.cohort!r} ({self.source}): {fix}"
        )

    def without(self) -> str:
        """Return how to do without the cohort."""
        if self.trains:
            return f"train on another cohort (`tasks.{self.task}.train`)"
        return f"remove {self.cohort} from `tasks.{self.task}.zero_shot`, where it cannot be scored"


def comparable(column: str, value: object) -> str | float:
    """Return what two table values are compared by: numbers by value, sexes by meaning, text exactly."""
    text = str(value).strip()
    sex = normal_sex(text) if column == "sex" else None
    number = finite(text)
    return sex or (text if number is None else number)


def finite(text: str) -> float | None:
    """Return the number that a text spells; None if it spells none, as n/a, inf and 1_0 do."""
    value = float(text) if NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def age_in_years(text: str) -> float | None:
    """Return the age that a text spells, None if it spells none from 0 to 120 years, as -9 and 43831 do."""
    age = finite(text)
    return age if age is not None and 0 <= age <= OLDEST else None


def normal_sex(text: str) -> str | None:
    """Return F or M for f, female, m and male in any case, None for anything else."""
    return SEXES.get(text.strip().lower())


def is_missing(value: str) -> bool:
    """Whether a table's cell says that there is no value."""
    return value.strip().lower() in ("", "n/a", "na", "nan")


def quantile_bins(values: Mapping[str, float]) -> dict[str, int]:
    """Return the quantile bin of each subject's value: 0 to at most MOST_BINS - 1, of equal sizes."""
    by_value = sorted(values, key=lambda subject: (values[subject], subject))
    bins = max(1, min(MOST_BINS, len(values) // SUBJECTS_PER_BIN))
    return {subject: rank * bins // len(values) for rank, subject in enumerate(by_value)}


def common_values(scans: "Iterable[Scan]", column: str) -> str:
    """Return the commonest values of a column, for errors."""
    counts = Counter(scan.labels.get(column, "").strip() or "(empty)" for scan in scans)
    common = [f"{value!r} ({count} scans)" for value, count in counts.most_common(8)]
    return ", ".join(common) + (", ..." if len(counts) > 8 else "")
