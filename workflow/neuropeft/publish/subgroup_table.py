"""The tables of subgroups, and of zero-shot subjects whose ages match the training cohort's."""

from collections.abc import Sequence

from neuropeft.config import Config
from neuropeft.evaluate.subgroups import CALIPER, DRAWS, SMALL
from neuropeft.publish.cells import Column, Record, cohort_text, intervals, lay_out, numbers, places, plain
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


def subgroup_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method, cohort and group."""
    task, _, method = places(config)
    everybody = Column("Cohort", lambda row: cohort_text(config, {**row, "n": row["n"] + row["others"]}))
    columns = (
        *(task, everybody, method),
        Column("Group", lambda row: row["group"] + FEW * row["small"]),
        plain("n", "n"),
        numbers("Score", "value", ".3f"),
        intervals("ci", ".3f"),
        numbers("Gap", "gap", "+.3f"),
        intervals("gap_ci", "+.3f"),
    )
    caption = (
        "Scores in groups of subjects."
        if records
        else "Empty: neither sex, age nor site tells subjects apart."
    )
    return lay_out("subgroups", caption, columns, records, SUBGROUP_NOTES, parts=3, text_columns=4)


def matched_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and zero-shot cohort."""
    columns = (
        *places(config),
        Column("Pairs", lambda row: f"{row['pairs']}{FEW * row.get('small', True)}"),
        numbers("In-domain", "home", ".3f"),
        numbers("Zero-shot", "away", ".3f"),
        numbers("Gap", "gap", "+.3f"),
        intervals("gap_ci", "+.3f"),
        numbers("Gap of all", "gap_all", "+.3f"),
    )
    caption = (
        "Zero-shot scores on subjects of matched ages."
        if records
        else "Empty: no task has a zero-shot cohort."
    )
    return lay_out("age_matched", caption, columns, records, MATCHED_NOTES, parts=2)
