"""The table of ensembles: each beside the mean score of its members."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuropeft.config import Config
from neuropeft.contenders import Contender
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import p_value, paired
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import Group
from neuropeft.publish.cells import Column, differences, intervals, lay_out, numbers, places
from neuropeft.publish.records import GROUP_COLUMNS, about, add_holm
from neuropeft.publish.sheet import Sheet

SHOWN = ("mean", "sd", "ci_low", "ci_high", "n")
COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", *SHOWN, "members", "members_mean", "difference"),
    *("difference_ci_low", "difference_ci_high", "p", "p_holm"),
)
NOTES = (
    "The mean of the probabilities, or values, that the members predict. All methods, or all seeds, are "
    "members: none is chosen. An ensemble of seeds is one predictor; one of methods is made for each seed, "
    "and the score is the mean over seeds. It takes as many trainings and predictions as it has members.",
    "Its threshold is chosen on the means of validation subjects. These differ between seeds: each counts "
    "with the seeds that it validates, since others were trained on it.",
    "Gain: score minus the mean score of the members, with its paired 95 % bootstrap interval. p: two-sided "
    "t test with the bootstrap's standard error, corrected by Holm for all ensembles of the task.",
)
Record = dict[str, Any]


def ensemble_records(config: Config, scores: Sequence[Score]) -> list[Record]:
    """Return a row, with the columns `COLUMNS`, for each ensemble and cohort, by the task's first metric."""
    first = {name: primary_metric(task).name for name, task in config.tasks.items()}
    shown = [score for score in scores if score.metric == first[score.contender.task]]
    by_place = {(score.contender.group, score.cohort): score for score in shown}
    rows: list[Record] = []
    for score in sorted(shown, key=lambda score: _order(config, score)):
        if score.contender.members and score.values:
            members = [by_place[group, score.cohort] for group in _members(score.contender)]
            rows.append(_record(score, members))
    add_holm(rows, "task")
    return rows


def _order(config: Config, score: Score) -> tuple[Any, ...]:
    one = score.contender
    return list(config.tasks).index(one.task), score.zero_shot, score.cohort, one.subset, one.place


def _members(one: Contender) -> list[Group]:
    lines = dict.fromkeys(line for of_seed in one.members.values() for line, _ in of_seed)
    return [(one.task, *line, one.subset) for line in lines]


def _record(score: Score, members: Sequence[Score]) -> Record:
    row: Record = {
        **about(score.contender, score.cohort, score.zero_shot),
        **{name: getattr(score, name) for name in SHOWN},
        "members": len(next(iter(score.contender.members.values()))),
    }
    pairs = [paired(score, one) for one in members]
    found = [pair for pair in pairs if pair is not None]
    if len(found) == len(pairs):
        difference = float(np.mean([one for one, _ in found]))
        draws = np.mean([drawn for _, drawn in found], axis=0)
        row |= {"members_mean": score.mean - difference, "difference": difference}
        row |= zip(COLUMNS[-4:-2], percentile_interval(draws), strict=True)
        row["p"] = p_value(difference, draws, score.n)
    return row


def ensemble_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each ensemble."""
    columns = (
        *places(config)[:2],
        Column("Subset", lambda row: row["subset"].label),
        Column("Ensemble", lambda row: row["label"].removeprefix("Ensemble: ")),
        numbers("Score", "mean", ".3f"),
        intervals("ci", ".3f"),
        numbers("Members' mean", "members_mean", ".3f"),
        *differences("Gain"),
    )
    caption = "Ensembles beside the mean of their members, by the first metric of each task."
    return lay_out("ensembles", caption, columns, records, NOTES, parts=3, text_columns=4)
