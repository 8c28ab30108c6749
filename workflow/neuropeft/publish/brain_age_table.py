"""The tables of brain age: errors of each method, and by bins of age."""

from collections.abc import Sequence

from neuropeft.config import Config
from neuropeft.evaluate.brain_age import FEWEST
from neuropeft.evaluate.subgroups import SMALL
from neuropeft.publish.cells import Column, Record, cohort_text, intervals, lay_out, numbers, places, plain
from neuropeft.publish.records import GROUP_COLUMNS
from neuropeft.publish.sheet import Sheet
from neuropeft.publish.subgroup_table import FEW

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


def brain_age_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and cohort."""
    columns = (
        *places(config, metric=False),
        numbers("MAE", "mae", ".1f"),
        numbers("over mean", "mae_over_mean", ".2f"),
        numbers("Mean error", "mean_error", "+.1f"),
        numbers("Slope", "slope", "+.2f"),
        numbers("MAE corrected", "mae_corrected", ".1f"),
        numbers("Slope corrected", "slope_corrected", "+.2f"),
        plain("Outside", "outside"),
        numbers("MAE inside", "mae_inside", ".1f"),
    )
    caption = "Errors of predicted age." if records else EMPTY
    return lay_out("brain_age", caption, columns, records, NOTES, parts=2)


def bin_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method, cohort and bin, of whose subjects alone there is a number."""
    task, _, method = places(config, metric=False)
    columns = (
        *(task, Column("Cohort", lambda row: cohort_text(config, row, with_n=False)), method),
        Column("Age", lambda row: row["bin"] + FEW * row["small"]),
        plain("n", "n"),
        numbers("MAE", "mae", ".1f"),
        numbers("Mean error", "mean_error", "+.1f"),
        intervals("ci", "+.1f"),
    )
    caption = "Errors of brain age by age." if records else EMPTY
    return lay_out("brain_age_bins", caption, columns, records, BIN_NOTES, parts=3, text_columns=4)
