"""Figures of Dhinagar 2024, Lian 2024 and Med-Tuning, as data, and which of ours they stand beside."""

import csv
import math
import statistics
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from neuropeft.config import Config
from neuropeft.evaluate.scores import Score
from neuropeft.subsets import WHOLE

METRIC_NAMES = {"auc": "auc", "mae_years": "mae"}
DHINAGAR, LIAN = "dhinagar2024_tables3_4.csv", "lian2024_tables.csv"
MED_TUNING = "medtuning_tables.csv"
# Column and size of the unit of its figures.
REGION_METRICS = {"dice": ("dice_percent", 100), "hd95": ("hausdorff_mm", 1)}
NOTES = {
    DHINAGAR: "published: Dhinagar et al. 2024, Tables 3 and 4, mean (SD) over three seeds; what is not from "
    "scratch there was pretrained as a masked autoencoder on UK Biobank.",
    LIAN: "published: Lian et al. 2024, Tables 1 to 5, one run each; LoRA has the ranks that its authors "
    "recommend for each amount of labels. They tested on other subjects: those of their own splits of NIH "
    "and RSNA, and CheXpert's official test set.",
    MED_TUNING: "published: Med-Tuning (Shen et al. 2024) as in CAP5516, lecture 13, one run each, on other "
    "test subjects. Means over regions are ours, of the printed figures. The source names no percentile of "
    "its Hausdorff distance.",
}


@cache
def read_reference(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV of `publish/reference`."""
    text = (files("neuropeft") / "publish" / "reference" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_score(config: Config, score: Score) -> tuple[float, float] | None:
    """Return mean and SD over seeds that a paper gives, or None where none has such a figure.

    The SD is NaN where there was one seed. The task, backbone, start, method and cohort must bear the names
    of `publish/reference`, the cohort must play the same role and be real, and as large a share of the
    training data must have been used.
    """
    found = _published(config, score)
    return found and found[1:]


def published_notes(config: Config, scores: Iterable[Score]) -> list[str]:
    """Return what must be known of the published figures that stand beside some scores."""
    found = [_published(config, score) for score in scores]
    return [NOTES[name] for name in dict.fromkeys(one[0] for one in found if one)]


def _published(config: Config, score: Score) -> tuple[str, float, float] | None:
    if config.cohorts[score.cohort].simulated is not None:
        return None
    return _of_dhinagar(config, score) or _of_lian(score) or _of_med_tuning(config, score)


def _of_lian(score: Score) -> tuple[str, float, float] | None:
    contender, names = score.contender, ("backbone", "pretraining", "method", "cohort", "fraction")
    ours = *contender.line, score.cohort, str(contender.subset.size)
    if score.metric == "auc" and contender.subset.of_all and not score.zero_shot:
        for row in read_reference(LIAN):
            if tuple(row[name] for name in names) == ours:
                return LIAN, float(row["auroc_percent"]) / 100, math.nan
    return None


def _of_med_tuning(config: Config, score: Score) -> tuple[str, float, float] | None:
    """Return the figure of a region, or the mean of them where the score is that of all regions."""
    contender, (sort, _, number) = score.contender, score.metric.partition("_")
    if contender.subset != WHOLE or score.zero_shot or sort not in REGION_METRICS:
        return None
    column, unit = REGION_METRICS[sort]
    regions = config.tasks[contender.task].part_names
    wanted = [regions[int(number)]] if number else regions
    ours = *contender.line, score.cohort
    found = {
        row["region"]: float(row[column]) / unit
        for row in read_reference(MED_TUNING)
        if tuple(row[name] for name in ("backbone", "pretraining", "method", "cohort")) == ours
        and row[column]
    }
    if not set(wanted) <= found.keys():
        return None
    return MED_TUNING, statistics.mean(found[region] for region in wanted), math.nan


def _of_dhinagar(config: Config, score: Score) -> tuple[str, float, float] | None:
    contender = score.contender
    if contender.subset != WHOLE:
        return None
    if score.metric == "mae" and config.tasks[contender.task].unit != "years":
        return None
    for row in read_reference(DHINAGAR):
        if (
            (row["task"], row["backbone"], row["method"])
            == (contender.task, contender.backbone, contender.method)
            and METRIC_NAMES[row["metric"]] == score.metric
            and row["cohort"] == score.cohort
            and row["zero_shot"] == str(int(score.zero_shot))
        ):
            return DHINAGAR, float(row["mean"]), float(row["sd"])
    return None


def published_cohort(config: Config, cohort: str) -> dict[str, str] | None:
    """Return the row of Table 2 for a real cohort with the paper's name, else None.

    OASIS is inconsistent in the paper itself: 600 subjects, but 341 women and 359 men. It is kept as printed.
    """
    if config.cohorts[cohort].simulated is not None or config.cohorts[cohort].synthetic is not None:
        return None
    return next((row for row in read_reference("dhinagar2024_table2.csv") if row["cohort"] == cohort), None)
