"""The table of calibration, of tasks with two classes."""

from collections.abc import Mapping, Sequence

from neuropeft.config import Config
from neuropeft.publish.cells import cohort_text, interval, number, part_breaks
from neuropeft.publish.records import GROUP_COLUMNS
from neuropeft.publish.sheet import Sheet

CALIBRATION_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "n", "ece", "ece_by_chance", "log_loss", "brier", "temperature"),
    *("ece_scaled", "log_loss_scaled", "brier_scaled"),
    *("sensitivity", "sensitivity_low", "sensitivity_high"),
    *("specificity", "specificity_low", "specificity_high"),
)
NOTES = (
    "ECE: expected calibration error, mean over seeds, of ten bins from 0 to 1. By chance: perfectly "
    "calibrated predictions of as many subjects stay below this in 95 of 100 samples; an ECE below it shows "
    "nothing.",
    "Temperature: what log-odds are divided by, fitted on validation, above 1 where predictions were too "
    "sure; scaled is what it makes of the test subjects, zero-shot cohorts too.",
    "Sensitivity and specificity at the threshold that validation chose, frozen for zero-shot cohorts, with "
    "Wilson's 95 % interval over subjects.",
)


def calibration_sheet(config: Config, records: Sequence[Mapping[str, object]]) -> Sheet:
    """Lay out a line for each method and cohort."""
    body = [
        [
            str(row["task"]),
            cohort_text(config, row),
            str(row["label"]),
            *(number(row[name], ".3f") for name in ("ece", "ece_by_chance", "ece_scaled")),
            number(row["temperature"], ".2f"),
            *(number(row[name], ".3f") for name in ("log_loss", "log_loss_scaled")),
            *(
                f"{number(row[name], '.2f')} ({interval(row, f'{name}_low', f'{name}_high', '.2f')})"
                for name in ("sensitivity", "specificity")
            ),
        ]
        for row in records
    ]
    header = ("ECE", "by chance", "scaled", "Temperature", "Log loss", "scaled", "Sensitivity", "Specificity")
    caption = "Calibration of predicted probabilities." if body else "Empty: no task has two classes."
    return Sheet(
        "calibration",
        caption,
        ("Task", "Cohort", "Method", *header),
        body,
        NOTES,
        part_breaks(body, 2),
        text_columns=3,
    )
