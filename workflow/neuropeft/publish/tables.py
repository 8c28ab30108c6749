"""The tables: parameters, cohorts, methods by tasks, and costs; and all scores and costs as tidy rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neuropeft import layout
from neuropeft.cells.status import Cells
from neuropeft.config import Config
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.costs import Costs, read_cost, read_costs, trainable_parameters
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
from neuropeft.publish.flow_table import FLOW_COLUMNS, flow_records, flow_sheet
from neuropeft.publish.formats import write_sheet
from neuropeft.publish.label_table import label_scores, label_sheet
from neuropeft.publish.labels import simulated_text
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
from neuropeft.publish.sheet import Sheet, write_csv
from neuropeft.publish.subset_table import subset_scores, subset_sheet

SIMULATED = "Simulated data"  # a caption that has it says so itself
OWN_WORDS = ("table1", "table3", "table4")  # of no data, and of some cohorts, which they name
PARTIAL = "partial"  # the column, and the mark, of tables of some cells


def write_tables(config: Config, results: Path, counts: Path, out: Path) -> None:
    """Write tables 1 to 4, of the flow, comparisons, confounds, labels, costs and a search, and `scores.csv`.

    Each is CSV, Markdown, LaTeX and HTML; that of labels and of a search only where there are such.

    Args:
        config: the configuration.
        results: the results folder.
        counts: CSV with our counts beside the published ones (`neuropeft params --format csv`).
        out: folder of the tables.

    Raises:
        UserError: a file of results cannot be read.
    """
    _write(
        config,
        results,
        counts,
        out,
        read_scores(config, results, with_draws=True),
        read_costs(config, results),
        "",
    )


def write_partial_tables(config: Config, results: Path, counts: Path, out: Path) -> None:
    """Write the tables of the cells that are finished now, each marked with how many of how many they are.

    Args:
        config: the configuration.
        results: the results folder.
        counts: as for `write_tables`.
        out: folder of the tables.

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
    _write(config, results, counts, out, scores, costs, f"{len(finished)} of {len(costs)} cells")


def _write(
    config: Config, results: Path, counts: Path, out: Path, scores: list[Score], costs: Costs, part: str
) -> None:
    """Write all tables; unless `part` is empty, it says in each of them of which part of the cells it is."""

    def write_rows(name: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        marked = [{**row, PARTIAL: part} for row in rows] if part else rows
        write_csv(out / f"{name}.csv", marked, (*columns, PARTIAL) if part else columns)

    def write_page(sheet: Sheet) -> None:
        caption = f"{PARTIAL.upper()}: {part}. {sheet.caption}" if part else sheet.caption
        if sheet.name not in OWN_WORDS and SIMULATED not in caption:
            caption = f"{caption} {simulated_text(config)}".rstrip()
        write_sheet(replace(sheet, caption=caption), out)

    compared = compare(scores)
    records = score_records(config, scores, compared, costs)
    write_rows("scores", records, SCORE_COLUMNS)
    write_rows("costs", cost_records(config, costs), COST_COLUMNS)
    write_page(cost_sheet(config, costs))

    count_rows = [with_difference(row) for row in read_tsv(counts)]
    write_rows("table1", count_rows, COUNT_COLUMNS)
    write_page(count_sheet(count_rows))

    cohorts = cohort_records(config, results)
    write_rows("table2", cohorts, COHORT_COLUMNS)
    write_page(cohort_sheet(cohorts))

    flow = flow_records(config, results)
    write_rows("flow", flow, FLOW_COLUMNS)
    write_page(flow_sheet(config, flow))

    against = comparison_records(config, scores, compared)
    write_rows("comparisons", against, COMPARISON_COLUMNS)
    write_page(comparison_sheet(config, against))

    ranked = rank_records(config, scores)
    write_rows("ranks", ranked, rank_columns(ranked))
    write_page(rank_sheet(config, ranked))

    tested = across_records(config, scores)
    write_rows("across_tasks", tested, ACROSS_COLUMNS)
    write_page(across_sheet(config, tested))

    curves = learning_curves(config, scores, costs)
    fitted, matched = curve_records(curves), match_records(curves)
    write_rows("learning_curves", fitted, CURVE_COLUMNS)
    write_page(curve_sheet(config, fitted))
    write_rows("scans_to_match", matched, MATCH_COLUMNS)
    write_page(match_sheet(config, matched))

    confounds = confound_records(config, results)
    write_rows("confounds", confounds, CONFOUND_COLUMNS)
    write_page(confound_sheet(config, confounds))
    warnings = confound_warnings(config, confounds)

    if config.training.search:
        chosen = search_records(config, results)
        write_rows("search", chosen, search_columns(chosen))
        write_page(search_sheet(config, chosen))

    record_of = {id(score): record for score, record in zip(scores, records, strict=True)}
    trainable = trainable_parameters(costs)
    pages = {
        f"table{table}": (
            select(config, scores, table),
            score_sheet(config, scores, compared, trainable, table),
        )
        for table in (3, 4)
    }
    for name, (shown, sheet) in pages.items():
        tasks = dict.fromkeys(score.contender.task for score in shown)
        told = [text for task in tasks for text in warnings.get(task, [])]
        pages[name] = shown, replace(sheet, notes=[*told, *sheet.notes])
    pages["subsets"] = subset_scores(config, scores), subset_sheet(config, scores, compared)
    if any(task.part_names for task in config.tasks.values()):
        pages["labels"] = label_scores(config, scores), label_sheet(config, scores)
    for name, (shown, sheet) in pages.items():
        write_rows(name, [record_of[id(score)] for score in shown], SCORE_COLUMNS)
        write_page(sheet)
