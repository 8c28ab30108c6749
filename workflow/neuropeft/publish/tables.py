"""The tables: parameters, cohorts, methods by tasks, and costs; and all scores and costs as tidy rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.costs import Costs, read_cost, read_costs, trainable_parameters
from neuropeft.cells.status import Cells
from neuropeft.config import Config
from neuropeft.evaluate.compare import Comparison, compare
from neuropeft.evaluate.partial import find_partial, score_all
from neuropeft.evaluate.scores import Score, read_scores
from neuropeft.files import read_tsv
from neuropeft.grid import cells
from neuropeft.publish.across_table import COLUMNS as ACROSS_COLUMNS
from neuropeft.publish.across_table import across_records, across_sheet
from neuropeft.publish.cohort_table import COHORT_COLUMNS, cohort_records, cohort_sheet
from neuropeft.publish.comparison_table import COLUMNS as COMPARISON_COLUMNS
from neuropeft.publish.comparison_table import comparison_records, comparison_sheet
from neuropeft.publish.confound_table import (
    CONFOUND_COLUMNS,
    confound_records,
    confound_sheet,
    confound_warnings,
)
from neuropeft.publish.cost_table import cost_sheet
from neuropeft.publish.count_table import COUNT_COLUMNS, count_sheet, with_difference
from neuropeft.publish.ensemble_table import COLUMNS as ENSEMBLE_COLUMNS
from neuropeft.publish.ensemble_table import ensemble_records, ensemble_sheet
from neuropeft.publish.flow_table import FLOW_COLUMNS, flow_records, flow_sheet
from neuropeft.publish.formats import Tables
from neuropeft.publish.label_table import label_scores, label_sheet
from neuropeft.publish.learning_table import (
    CURVE_COLUMNS,
    MATCH_COLUMNS,
    curve_records,
    curve_sheet,
    learning_curves,
    match_records,
    match_sheet,
)
from neuropeft.publish.rank_table import rank_columns, rank_records, rank_sheet
from neuropeft.publish.records import (
    COST_COLUMNS,
    SCORE_COLUMNS,
    cost_records,
    score_records,
)
from neuropeft.publish.score_tables import score_sheet, select
from neuropeft.publish.search_table import search_columns, search_records, search_sheet
from neuropeft.publish.sheet import Sheet
from neuropeft.publish.subset_table import subset_scores, subset_sheet


def write_tables(config: Config, results: Path, counts: Path, out: Path) -> None:
    """Write tables 1 to 4, of the flow, comparisons, confounds, labels, costs and a search, and `scores.csv`.

    Each is CSV, Markdown, LaTeX and HTML; that of labels and of a search only where there are such.

    `counts` is the CSV of `neuropeft params`: our counts beside the published ones.

    Raises:
        UserError: a file of results cannot be read.
    """
    scores = read_scores(config, results, with_draws=True)
    _write(results, counts, Tables(config, out), scores, read_costs(config, results))


def write_partial_tables(config: Config, results: Path, counts: Path, out: Path) -> None:
    """Write the tables of the cells that are finished now, each marked with how many of how many they are.

    Raises:
        UserError: a file of results cannot be read.
    """
    of_cells = Cells(config, results)
    finished = of_cells.finished
    costs = {
        cell: read_cost(finished[cell] / "cost.json") if cell in finished else None for cell in cells(config)
    }
    partial = layout.PARTIAL.at(results)
    score_all(config, results, partial, find_partial(of_cells))
    scores = read_scores(config, partial, with_draws=True)
    part = f"{len(finished)} of {len(costs)} cells"
    _write(results, counts, Tables(config, out, part), scores, costs)


def _write(results: Path, counts: Path, tables: Tables, scores: Sequence[Score], costs: Costs) -> None:
    """Write all tables of some scores and costs."""
    config, compared = tables.config, compare(scores)
    records = score_records(config, scores, compared, costs)
    tables.write_rows("scores", records, SCORE_COLUMNS)
    tables.write(cost_sheet(config, costs), cost_records(config, costs), COST_COLUMNS)
    count_rows = [with_difference(row) for row in read_tsv(counts)]
    tables.write(count_sheet(count_rows), count_rows, COUNT_COLUMNS)
    cohorts = cohort_records(config, results)
    tables.write(cohort_sheet(cohorts), cohorts, COHORT_COLUMNS)
    flow = flow_records(config, results)
    tables.write(flow_sheet(config, flow), flow, FLOW_COLUMNS)
    against = comparison_records(config, scores, compared)
    tables.write(comparison_sheet(config, against), against, COMPARISON_COLUMNS)
    ranked = rank_records(config, scores)
    tables.write(rank_sheet(config, ranked), ranked, rank_columns(ranked))
    tested = across_records(config, scores)
    tables.write(across_sheet(config, tested), tested, ACROSS_COLUMNS)
    curves = learning_curves(config, scores, costs)
    fitted, matched = curve_records(curves), match_records(curves)
    tables.write(curve_sheet(config, fitted), fitted, CURVE_COLUMNS)
    tables.write(match_sheet(config, matched), matched, MATCH_COLUMNS)
    confounds = confound_records(config, results)
    tables.write(confound_sheet(config, confounds), confounds, CONFOUND_COLUMNS)
    if config.analyses.ensembles:
        of_ensembles = ensemble_records(config, scores)
        tables.write(ensemble_sheet(config, of_ensembles), of_ensembles, ENSEMBLE_COLUMNS)
    if config.training.search:
        chosen = search_records(config, results)
        tables.write(search_sheet(config, chosen), chosen, search_columns(chosen))

    record_of = {id(score): record for score, record in zip(scores, records, strict=True)}
    warnings = confound_warnings(config, confounds)
    for sheet, shown in _score_pages(config, scores, compared, costs, warnings):
        tables.write(sheet, [record_of[id(score)] for score in shown], SCORE_COLUMNS)


def _score_pages(
    config: Config,
    scores: Sequence[Score],
    compared: Sequence[Comparison],
    costs: Costs,
    warnings: Mapping[str, Sequence[str]],
) -> Iterator[tuple[Sheet, list[Score]]]:
    """Yield the tables of scores, and what each shows; `warnings` are of tasks."""
    trainable = trainable_parameters(costs)
    for table in (3, 4):
        shown, sheet = select(config, scores, table), score_sheet(config, scores, compared, trainable, table)
        tasks = dict.fromkeys(score.contender.task for score in shown)
        told = [text for task in tasks for text in warnings.get(task, [])]
        yield replace(sheet, notes=[*told, *sheet.notes]), shown
    yield subset_sheet(config, scores, compared), subset_scores(config, scores)
    if any(task.part_names for task in config.tasks.values()):
        yield label_sheet(config, scores), label_scores(config, scores)
