"""The tables of subgroups, and of zero-shot subjects whose ages match the training cohort's."""

from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.subgroups import CALIPER, DRAWS, SMALL
from neuropeft.publish.cells import cohort_text, interval, number, part_breaks, task_text
from neuropeft.publish.records import GROUP_COLUMNS
from neuropeft.publish.sheet import Sheet

SUBGROUP_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "metric", "variable", "group", "n", "others"),
    *("value", "ci_low", "ci_high", "gap", "gap_ci_low", "gap_ci_high", "small"),
)
MATCHED_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "metric", "pairs", "home", "away"),
    *("gap", "gap_ci_low", "gap_ci_high", "gap_all", "small"),
)
FEW = " *"
SUBGROUP_NOTES = (
    f"Gap: score of the group minus that of all others whose sex, age or site is known, with its 95 % "
    f"bootstrap interval ({DRAWS:,} draws of subjects), not corrected for the number of groups.",
    f"*: fewer than {SMALL} subjects in the group or beside it; read no more than the interval says.",
    "An AUC within a group leaves out how the groups differ in how many are ill.",
)
MATCHED_NOTES = (
    f"Test subjects of the training cohort are paired with zero-shot subjects of about the same age (at most "
    f"{CALIPER:g} years apart, as many pairs as there are). Gap: zero-shot minus in-domain, on the pairs and "
    "on all subjects; what is left of it on the pairs is not the ages' doing. 95 % bootstrap interval "
    "over pairs.",
    f"*: fewer than {SMALL} pairs.",
)
Record = Mapping[str, Any]


def subgroup_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method, cohort and group."""
    body = [
        [
            task_text(config, row["task"]),
            cohort_text(config, {**row, "n": row["n"] + row["others"]}),
            row["label"],
            row["group"] + FEW * row["small"],
            str(row["n"]),
            number(row["value"], ".3f"),
            interval(row, "ci_low", "ci_high", ".3f"),
            number(row["gap"], "+.3f"),
            interval(row, "gap_ci_low", "gap_ci_high", "+.3f"),
        ]
        for row in records
    ]
    return Sheet(
        "subgroups",
        "Scores in groups of subjects." if body else "Empty: neither sex, age nor site tells subjects apart.",
        ("Task", "Cohort", "Method", "Group", "n", "Score", "95 % interval", "Gap", "95 % interval"),
        body,
        SUBGROUP_NOTES,
        part_breaks(body, 3),
        text_columns=4,
    )


def matched_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and zero-shot cohort."""
    body = [
        [
            task_text(config, row["task"]),
            cohort_text(config, row),
            row["label"],
            f"{row['pairs']}{FEW * row.get('small', True)}",
            *(number(row.get(name), ".3f") for name in ("home", "away")),
            number(row.get("gap"), "+.3f"),
            interval(row, "gap_ci_low", "gap_ci_high", "+.3f"),
            number(row["gap_all"], "+.3f"),
        ]
        for row in records
    ]
    header = ("Pairs", "In-domain", "Zero-shot", "Gap", "95 % interval", "Gap of all")
    return Sheet(
        "age_matched",
        "Zero-shot scores on subjects of matched ages." if body else "Empty: no task has a zero-shot cohort.",
        ("Task", "Cohort", "Method", *header),
        body,
        MATCHED_NOTES,
        part_breaks(body, 2),
        text_columns=3,
    )
