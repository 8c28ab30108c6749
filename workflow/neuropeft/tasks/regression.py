"""Predicting a number, such as an age."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuropeft.errors import UserError
from neuropeft.tasks.base import Array, Metric, Objective, Row, TaskKind
from neuropeft.tasks.metrics import mean_absolute_error, pearson_r
from neuropeft.tasks.values import OLDEST, Place, age_in_years, finite, is_missing, quantile_bins

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.config import RegressionTask

SUBJECTS = 3  # one for each side of a split
STAND_IN = re.compile(r"-(4|7+|8+|9+)|9{3,}")  # how many a table writes that a number is missing
SERIAL_DATES = (20_000, 60_000)  # days since 1900, as spreadsheets store dates from 1954 to 2064
ROUNDING = 1e-9  # shares that add up to a half, and not to a little less


class Regression(TaskKind):
    """Predicting a number: L1 on the standardised target."""

    metrics = (
        Metric(
            "mae", "MAE", False, lambda y, score, rule, weights: mean_absolute_error(y, score, weights), True
        ),
        Metric("r", "Pearson r", True, lambda y, score, rule, weights: pearson_r(y, score, weights)),
    )
    loss_label = "loss (L1, standardised)"
    stratum = "quantile bin"
    chance = None
    regresses = True

    def read(self, place: Place, task: "RegressionTask", scans: "Sequence[Scan]") -> list[float | None]:
        """Return the target of every scan, None where the table has none."""
        read, wanted = finite, "a number"
        if task.target == "age":
            read, wanted = age_in_years, f"an age of 0 to {OLDEST} years"
        values: dict[str, float | None] = {}
        for scan in scans:
            text = scan.labels.get(task.target, "")
            values[scan.scan_id] = read(text)
            if values[scan.scan_id] is None and not is_missing(text):
                problem = f"{task.target!r} of scan {scan.scan_id} is {text!r}, which is not {wanted},"
                raise place.error("target", problem, f"write {wanted}, or n/a to leave the scan out")
        _check_stand_ins(place, task, {scan: value for scan, value in values.items() if value is not None})
        return list(values.values())

    def check(
        self, place: Place, task: "RegressionTask", rows: Sequence[Row], scans: "Sequence[Scan]"
    ) -> None:
        """Check that there are values, that they vary, and that their subjects can be split."""
        if not rows:
            problem = f"none of {len(scans)} scans has a value of {task.target!r}"
            raise place.error("target", problem, "fill in the column or choose another")
        if len({row["y"] for row in rows}) == 1:
            problem = f"{task.target!r} is {rows[0]['y']:g} for all {len(rows)} scans"
            raise place.error("target", problem, f"choose a target that varies, or {place.without()}")
        subjects = len({row["subject"] for row in rows})
        if place.trains and subjects < SUBJECTS:
            problem = f"only {subjects} subjects have a value of {task.target!r}"
            raise place.error("target", problem, f"a split needs {SUBJECTS}: add subjects or relax `where`")

    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return the quantile bin of each subject's value."""
        return quantile_bins({subject: float(target) for subject, target in targets.items()})

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return L1 on the target less its weighted median, over its weighted SD."""
        share = np.asarray(weights) / np.sum(weights)
        sd = float(np.sqrt(((targets - (share * targets).sum()) ** 2 * share).sum()))
        order = np.argsort(targets, kind="stable")
        median = float(targets[order][share[order].cumsum() >= 0.5 - ROUNDING][0])
        if sd == 0:
            raise UserError(
                f"{name}: all training targets are {median:g}; nothing can be learnt, give a larger subset"
            )

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            return (outputs[:, 0] - (targets - median) / sd).abs()

        return Objective(loss, (median,), sd)

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return values in the target's unit, [n, 1]."""
        return outputs * scale + offset[0]

    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why some metric is NaN: either side is constant."""
        if not np.isfinite(score).all():
            return "predictions are not finite"
        if np.ptp(score) == 0:
            return "predictions are constant"
        return "targets are constant" if np.ptp(y) == 0 else ""

    def constant_scores(self, y: Array) -> Array:
        """Return the mean, [1]."""
        return np.array([y.mean()])

    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Return the predictions [n, 1] of one fitted regression."""
        (model,) = models
        return model.predict(features)[:, None]


def _check_stand_ins(place: Place, task: "RegressionTask", values: Mapping[str, float]) -> None:
    """Check that no target is a word for "missing" or a spreadsheet's date: it lies far from all others."""
    missing = {scan for scan, value in values.items() if STAND_IN.fullmatch(f"{value:.15g}")}
    first, last = SERIAL_DATES
    dates = {scan for scan, value in values.items() if first <= value < last and value.is_integer()}
    others = [value for scan, value in values.items() if scan not in missing | dates]
    low, high = min(others, default=0), max(map(abs, others), default=math.inf)
    for scan, value in values.items():
        if scan in missing and (value < 0 <= low or value > 2 * high):
            meaning = "a missing value"
        elif scan in dates and value > 100 * high:
            meaning = "a date of a spreadsheet"
        else:
            continue
        problem = f"{task.target!r} of scan {scan} is {value:g}, which looks like {meaning},"
        raise place.error("target", problem, "write the number that is meant, or n/a to leave the scan out")
    if dates and len(dates) == len(values):
        print(
            f"task {place.task}: every {task.target} in cohort {place.cohort} looks like a date of a "
            f"spreadsheet, for example {values[min(dates)]:g} of scan {min(dates)}; choose another column"
        )
