"""Figures published by Dhinagar et al. 2024, as data, and which of ours they stand beside."""

import csv
from functools import cache
from importlib.resources import files

from neuropeft.config import Config
from neuropeft.evaluate.scores import Score
from neuropeft.subsets import WHOLE

METRIC_NAMES = {"auc": "auc", "mae_years": "mae"}


@cache
def _read(name: str) -> list[dict[str, str]]:
    text = (files("neuropeft") / "publish" / "reference" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_score(config: Config, score: Score) -> tuple[float, float] | None:
    """Return mean and SD over three seeds from Tables 3 and 4, or None where the paper has no such figure.

    The task, backbone, method and cohort must bear the paper's names, the cohort must play the same role and
    be real, and all training data must have been used.
    """
    contender = score.contender
    if contender.subset != WHOLE or config.cohorts[score.cohort].simulated is not None:
        return None
    if score.metric == "mae" and config.tasks[contender.task].unit != "years":
        return None
    for row in _read("dhinagar2024_tables3_4.csv"):
        if (
            (row["task"], row["backbone"], row["method"])
            == (contender.task, contender.backbone, contender.method)
            and METRIC_NAMES[row["metric"]] == score.metric
            and row["cohort"] == score.cohort
            and row["zero_shot"] == str(int(score.zero_shot))
        ):
            return float(row["mean"]), float(row["sd"])
    return None


def published_cohort(config: Config, cohort: str) -> dict[str, str] | None:
    """Return the row of Table 2 for a real cohort with the paper's name, else None.

    OASIS is inconsistent in the paper itself: 600 subjects, but 341 women and 359 men. It is kept as printed.
    """
    if config.cohorts[cohort].simulated is not None or config.cohorts[cohort].synthetic is not None:
        return None
    return next((row for row in _read("dhinagar2024_table2.csv") if row["cohort"] == cohort), None)
