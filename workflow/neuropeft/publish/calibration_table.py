"""The table of calibration, of tasks with classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.config import Config
from neuropeft.evaluate.calibration import TEMPERATURES
from neuropeft.files import MISSING
from neuropeft.publish.cells import cohort_text, interval, number, part_breaks
from neuropeft.publish.records import GROUP_COLUMNS
from neuropeft.publish.sheet import Sheet

CALIBRATION_COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "n", "ece", "ece_by_chance", "classwise", "classwise_by_chance"),
    *(
        "log_loss",
        "brier",
        "temperature",
        "temperature_at_limit",
        "ece_scaled",
        "classwise_scaled",
        "log_loss_scaled",
        "brier_scaled",
    ),
    *("sensitivity", "sensitivity_low", "sensitivity_high"),
    *("specificity", "specificity_low", "specificity_high"),
)
AT_LIMIT = " (limit)"
ERRORS = (
    *("ece", "ece_by_chance", "ece_scaled"),
    *("classwise", "classwise_by_chance", "classwise_scaled"),
)
NOTES = (
    "ECE: expected calibration error, mean over seeds, of ten bins from 0 to 1: of the probability of the "
    "second of two classes; of more, of the probability of the likeliest one, against how often it is the "
    "true one (Guo 2017). Classwise: the mean over classes of the error of the probability of each against "
    "the others (Kull 2019), of two the same. By chance: perfectly calibrated predictions of as many "
    "subjects stay below this in 95 of 100 samples; an error below it shows nothing.",
    "Temperature: what logits are divided by, fitted on validation, above 1 where predictions were too "
    "sure; scaled is what it makes of the test subjects, zero-shot cohorts too. Limit: in one fold at least "
    f"the best value lay beyond {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, as happens where validation is "
    "predicted without an error, or no better than chance.",
    "Sensitivity and specificity, of two classes, at the threshold that validation chose, frozen for "
    "zero-shot cohorts, with Wilson's 95 % interval over subjects.",
)


def calibration_sheet(config: Config, records: Sequence[Mapping[str, Any]]) -> Sheet:
    """Lay out a line for each method and cohort."""
    body = [
        [
            str(row["task"]),
            cohort_text(config, row),
            str(row["label"]),
            *(number(row[name], ".3f") for name in ERRORS),
            number(row["temperature"], ".2f") + AT_LIMIT * (row["temperature_at_limit"] > 0),
            *(number(row[name], ".3f") for name in ("log_loss", "log_loss_scaled")),
            *(_share(row, name) for name in ("sensitivity", "specificity")),
        ]
        for row in records
    ]
    header = (
        *("ECE", "by chance", "scaled", "Classwise", "by chance", "scaled", "Temperature"),
        *("Log loss", "scaled", "Sensitivity", "Specificity"),
    )
    caption = "Calibration of predicted probabilities." if body else "Empty: no task has classes."
    return Sheet(
        "calibration",
        caption,
        ("Task", "Cohort", "Method", *header),
        body,
        NOTES,
        part_breaks(body, 2),
        text_columns=3,
    )


def _share(row: Mapping[str, Any], name: str) -> str:
    ends = interval(row, f"{name}_low", f"{name}_high", ".2f")
    return MISSING if ends == MISSING else f"{row[name]:.2f} ({ends})"
