"""What predictions say of subjects: calibration, subgroups, matched ages and brain age; tables and figures.

Everything is of the methods with the largest subset of their task, and derives from predictions.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from neuropeft.config import Config
from neuropeft.evaluate.blocks import guesses
from neuropeft.evaluate.brain_age import bin_records, brain_age_record
from neuropeft.evaluate.calibration import calibration
from neuropeft.evaluate.people import Person, Predicted, people, read_predicted
from neuropeft.evaluate.scores import read_scores
from neuropeft.evaluate.subgroups import group_records, matched_record
from neuropeft.publish.brain_age_table import (
    BIN_COLUMNS,
    BRAIN_AGE_COLUMNS,
    bin_sheet,
    brain_age_sheet,
)
from neuropeft.publish.calibration_table import CALIBRATION_COLUMNS, calibration_sheet
from neuropeft.publish.diagnostic_figures import draw_age_errors, draw_reliability
from neuropeft.publish.formats import Tables
from neuropeft.publish.records import about
from neuropeft.publish.style import print_style, save
from neuropeft.publish.subgroup_table import (
    MATCHED_COLUMNS,
    SUBGROUP_COLUMNS,
    matched_sheet,
    subgroup_sheet,
)

Record = dict[str, object]


def write_diagnostics(config: Config, results: Path, tables: Path, figures: Path) -> None:
    """Write tables of calibration, subgroups, matched ages and brain age, and two figures.

    Raises:
        UserError: a file of results cannot be read.
    """
    predicted = read_predicted(config, results)
    classes = [one for one in predicted if one.kind.every_stratum]
    aged = [one for one in predicted if one.kind.regresses and _target(config, one) == "age"]
    of_mean = guesses(read_scores(config, results))
    who = {
        (one.contender.task, one.cohort): people(results, one.contender.task, one.cohort) for one in predicted
    }

    write = Tables(config, tables).write
    calibrated = [_place(one) | calibration(one) for one in classes]
    write(calibration_sheet(config, calibrated), calibrated, CALIBRATION_COLUMNS)

    grouped = [
        _place(one) | row
        for one in predicted
        for row in group_records(one, who[one.contender.task, one.cohort], [_target(config, one)])
    ]
    write(subgroup_sheet(config, grouped), grouped, SUBGROUP_COLUMNS)

    matched = list(_matched(predicted, who))
    write(matched_sheet(config, matched), matched, MATCHED_COLUMNS)

    ageing = [
        _place(one)
        | brain_age_record(one, results, of_mean.get((*one.contender.group[::4], one.cohort, "mae"), np.nan))
        for one in aged
    ]
    write(brain_age_sheet(config, ageing), ageing, BRAIN_AGE_COLUMNS)
    binned = [_place(one) | row for one in aged for row in bin_records(one)]
    write(bin_sheet(config, binned), binned, BIN_COLUMNS)

    with print_style():
        save(draw_reliability(config, classes), figures, "reliability")
        save(draw_age_errors(config, aged), figures, "age_errors")


def _place(one: Predicted) -> Record:
    return about(one.contender, one.cohort, one.zero_shot)


def _target(config: Config, one: Predicted) -> str:
    """Return the column that is predicted; empty where there are several."""
    columns = list(config.tasks[one.contender.task].target_columns.values())
    return columns[0] if len(columns) == 1 else ""


def _matched(
    predicted: Sequence[Predicted], who: Mapping[tuple[str, str], Mapping[str, Person]]
) -> Iterable[Record]:
    """Yield a row for each method and zero-shot cohort."""
    at_home = {one.contender: one for one in predicted if not one.zero_shot}
    for away in predicted:
        home = at_home.get(away.contender)
        if away.zero_shot and home is not None:
            ages = {
                f"{one.cohort}/{subject}": person
                for one in (home, away)
                for subject, person in who[one.contender.task, one.cohort].items()
            }
            yield _place(away) | matched_record(home, away, ages)
