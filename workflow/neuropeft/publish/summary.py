"""The summary of a run: main scores beside the controls, and where everything lies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.costs import read_costs, trainable_parameters
from neuropeft.cells.status import Cells
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.evaluate.against_controls import against_controls
from neuropeft.evaluate.scores import NOT_SCORED, Score, primary_metric, read_scores
from neuropeft.files import MISSING
from neuropeft.grid import Group, scanned_cohorts, used_cohorts, used_tasks
from neuropeft.publish.confound_table import confound_records, confound_warnings
from neuropeft.publish.labels import cohort_label, folds_text, is_simulated
from neuropeft.subsets import WHOLE


def print_summary(config: Config, results: Path) -> None:
    """Print the main scores of every task and the places of tables, figures and QC pages.

    Raises:
        UserError: nothing has been scored yet.
    """
    scores = read_scores(config, results, with_draws=True)
    if all(score.reason == NOT_SCORED for score in scores):
        folder = layout.SCORES.at(results, scored="cells").parent
        raise UserError(f"there are no scores in {folder}: run the workflow first")
    trainable = trainable_parameters(read_costs(config, results))
    simulated = [cohort for cohort in used_cohorts(config) if is_simulated(config, cohort)]
    if simulated:
        print(f"Simulated data ({', '.join(simulated)}): these numbers say nothing about real brains.\n")
    warnings = confound_warnings(config, confound_records(config, results))
    for task in used_tasks(config):
        for cohort in (config.tasks[task].train, *config.tasks[task].zero_shot):
            print("\n".join(_block(config, scores, trainable, task, cohort)), end="\n\n")
        for text in warnings.get(task, []):
            print(text, end="\n\n")
    print("\n".join(_places(config, results)))


def _block(
    config: Config, scores: Sequence[Score], trainable: Mapping[Group, int], task: str, cohort: str
) -> Iterator[str]:
    spec = config.tasks[task]
    metric = primary_metric(spec)
    of_cohort = [
        score
        for score in scores
        if (score.contender.task, score.cohort, score.metric) == (task, cohort, metric.name)
    ]
    trained = [score.contender.subset for score in of_cohort if score.contender.sort == "cells"]
    subset = max(trained, default=WHOLE)
    shown = [score for score in of_cohort if score.contender.subset == subset]
    n = max((score.n for score in shown if score.n is not None), default=0)
    better = "higher" if metric.higher_is_better else "lower"
    zero_shot = "" if cohort == spec.train else ", zero-shot"
    folds = f" ({folds_text(config)})" if config.splits.folds else ""
    yield (
        f"{task} on {cohort_label(config, cohort)}{zero_shot}: {metric.title(spec.unit)} "
        f"({better} is better), n = {n} test subjects{folds}, {subset.text}"
    )
    width = max((len(score.contender.label) for score in shown), default=0)
    head = f"{metric.label:>8}  {'SD':>8}  {'95 % interval':>18}  {'seeds':>5}  {'trainable':>11}"
    yield f"  {'':{width}}  {head}"

    def best_first(score: Score) -> tuple[int, bool, float]:
        # Methods, probes and controls apart; what has no value comes last.
        return score.contender.place[0], not score.values, score.order if score.values else 0.0

    below = {id(one.score): f"  {one.verdict}: {one.name}" for one in against_controls(shown) if one.is_below}
    for score in sorted(shown, key=best_first):
        yield f"  {score.contender.label:{width}}  {_values(score, trainable)}{below.get(id(score), '')}"


def _values(score: Score, trainable: Mapping[Group, int]) -> str:
    interval = MISSING if math.isnan(score.ci_low) else f"{score.ci_low:.3f} to {score.ci_high:.3f}"
    seeds = f"{len(score.values)}/{len(score.contender.seeds)}"
    parameters = trainable.get(score.contender.group)
    counted = "-" if parameters is None else f"{parameters:,}"
    mean, sd = (MISSING if math.isnan(value) else f"{value:.4f}" for value in (score.mean, score.sd))
    return f"{mean:>8}  {sd:>8}  {interval:>18}  {seeds:>5}  {counted:>11}"


def _places(config: Config, results: Path) -> Iterator[str]:
    of_cells = Cells(config, results)
    yield f"cells    {len(of_cells.finished)} of {len(of_cells.statuses)} finished"
    yield f"report   {layout.REPORT.at(results)}"
    yield f"tables   {layout.TABLES.at(results)}"
    yield f"figures  {layout.FIGURES.at(results)}"
    for cohort in scanned_cohorts(config):
        yield f"QC       {layout.QC_PAGE.at(results, cohort=cohort)}"
