"""The tables of brain age: errors of each method, and by bins of age."""

from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.brain_age import FEWEST
from neuropeft.evaluate.subgroups import SMALL
from neuropeft.publish.cells import cohort_text, interval, number, part_breaks
from neuropeft.publish.records import GROUP_COLUMNS
from neuropeft.publish.sheet import Sheet

BRAIN_AGE_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "n", "mae", "mae_over_mean", "mean_error", "slope"),
    *("mae_corrected", "mean_error_corrected", "slope_corrected", "outside", "mae_inside", "mae_outside"),
)
BIN_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot"),
    *("bin", "n", "mae", "mean_error", "ci_low", "ci_high", "small"),
)
EMPTY = "Empty: no task predicts age."
NOTES = (
    "Years, means over seeds. Over mean: MAE over that of predicting the training mean; 1 is no skill.",
    "Mean error: predicted minus true age. Slope: years of error per year of age; -1 where all are predicted "
    "the same age.",
    "Corrected: for the line of predicted on true age that is fitted on validation; true ages of test "
    "subjects are not used (Cole et al. 2018). n/a where validation, which is small, shows no such line.",
    "Outside: test subjects who are younger or older than everybody that some seed or fold was trained on.",
)
BIN_NOTES = (
    "Years, means over seeds. Mean error: predicted minus true age, with a 95 % t interval over subjects.",
    f"*: fewer than {SMALL} subjects. Bins of fewer than {FEWEST} are left out.",
)
Record = Mapping[str, Any]


def brain_age_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and cohort."""
    body = [
        [
            row["task"],
            cohort_text(config, row),
            row["label"],
            number(row["mae"], ".1f"),
            number(row["mae_over_mean"], ".2f"),
            number(row["mean_error"], "+.1f"),
            number(row["slope"], "+.2f"),
            number(row["mae_corrected"], ".1f"),
            number(row["slope_corrected"], "+.2f"),
            str(row["outside"]),
            number(row["mae_inside"], ".1f"),
        ]
        for row in records
    ]
    header = (
        "MAE",
        "over mean",
        "Mean error",
        "Slope",
        "MAE corrected",
        "Slope corrected",
        "Outside",
        "MAE inside",
    )
    return Sheet(
        "brain_age",
        "Errors of predicted age." if body else EMPTY,
        ("Task", "Cohort", "Method", *header),
        body,
        NOTES,
        part_breaks(body, 2),
        text_columns=3,
    )


def bin_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method, cohort and bin."""
    body = [
        [
            row["task"],
            cohort_text(config, {name: row[name] for name in ("cohort", "zero_shot")}),
            row["label"],
            row["bin"] + " *" * row["small"],
            str(row["n"]),
            number(row["mae"], ".1f"),
            number(row["mean_error"], "+.1f"),
            interval(row, "ci_low", "ci_high", "+.1f"),
        ]
        for row in records
    ]
    return Sheet(
        "brain_age_bins",
        "Errors of brain age by age." if body else EMPTY,
        ("Task", "Cohort", "Method", "Age", "n", "MAE", "Mean error", "95 % interval"),
        body,
        BIN_NOTES,
        part_breaks(body, 3),
        text_columns=4,
    )
