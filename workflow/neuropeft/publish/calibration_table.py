"""The table of calibration, of tasks with classes."""

from collections.abc import Sequence

from neuropeft.config import Config
from neuropeft.evaluate.calibration import TEMPERATURES
from neuropeft.files import MISSING
from neuropeft.publish.cells import Column, Record, interval, lay_out, number, numbers, places
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


def calibration_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and cohort."""
    columns = (
        *places(config, metric=False),
        numbers("ECE", "ece", ".3f"),
        numbers("by chance", "ece_by_chance", ".3f"),
        numbers("scaled", "ece_scaled", ".3f"),
        numbers("Classwise", "classwise", ".3f"),
        numbers("by chance", "classwise_by_chance", ".3f"),
        numbers("scaled", "classwise_scaled", ".3f"),
        Column("Temperature", _temperature),
        numbers("Log loss", "log_loss", ".3f"),
        numbers("scaled", "log_loss_scaled", ".3f"),
        Column("Sensitivity", lambda row: _share(row, "sensitivity")),
        Column("Specificity", lambda row: _share(row, "specificity")),
    )
    caption = "Calibration of predicted probabilities." if records else "Empty: no task has classes."
    return lay_out("calibration", caption, columns, records, NOTES, parts=2)


def _temperature(row: Record) -> str:
    return number(row["temperature"], ".2f") + AT_LIMIT * (row["temperature_at_limit"] > 0)


def _share(row: Record, name: str) -> str:
    ends = interval(row, f"{name}_low", f"{name}_high", ".2f")
    return MISSING if ends == MISSING else f"{row[name]:.2f} ({ends})"
