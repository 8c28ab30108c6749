"""The closing words of a run: main scores beside the controls, and where everything lies."""

from collections.abc import Iterator
from pathlib import Path

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.errors import UserError
from neuropeft.evaluate.scores import CONTROL, primary_metric
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import Group, scanned_cohorts, used_cohorts, used_tasks
from neuropeft.probe_grid import is_probe
from neuropeft.publish.labels import (
    cohort_label,
    folds_text,
    group_label,
    is_control,
    is_simulated,
)
from neuropeft.subsets import WHOLE, Subset

Row = dict[str, str]


def print_summary(config: Config, results: Path) -> None:
    """Print the main scores of every task and the places of tables, figures and QC pages.

    Raises:
        UserError: the tables have not been written yet.
    """
    path = layout.SCORES.at(results)
    if not path.is_file():
        raise UserError(f"there is no {path}: run the workflow first")
    rows = read_tsv(path)
    simulated = [cohort for cohort in used_cohorts(config) if is_simulated(config, cohort)]
    if simulated:
        print(f"Simulated data ({', '.join(simulated)}): these numbers say nothing about real brains.\n")
    for task in used_tasks(config):
        for cohort in (config.tasks[task].train, *config.tasks[task].zero_shot):
            print("\n".join(_block(config, rows, task, cohort)), end="\n\n")
    print("\n".join(_places(config, results)))


def _block(config: Config, rows: list[Row], task: str, cohort: str) -> Iterator[str]:
    spec = config.tasks[task]
    metric = primary_metric(spec)
    shown = [
        row for row in rows if (row["task"], row["cohort"], row["metric"]) == (task, cohort, metric.name)
    ]
    trained = [
        Subset.parse(row["subset"])
        for row in shown
        if row["backbone"] != CONTROL and not is_probe(_group(row))
    ]
    subset = max(trained, default=WHOLE)
    shown = [row for row in shown if row["subset"] == str(subset)]
    n = max((int(row["n"]) for row in shown if row["n"] != MISSING), default=0)
    better = "higher" if metric.higher_is_better else "lower"
    zero_shot = "" if cohort == spec.train else ", zero-shot"
    folds = f" ({folds_text(config)})" if config.splits.folds else ""
    yield (
        f"{task} on {cohort_label(config, cohort)}{zero_shot}: {metric.title(spec.unit)} "
        f"({better} is better), n = {n} test subjects{folds}, {subset.text}"
    )
    width = max((len(group_label(config, _group(row))) for row in shown), default=0)
    head = f"{metric.label:>8}  {'SD':>8}  {'95 % interval':>18}  {'seeds':>5}  {'trainable':>11}"
    yield f"  {'':{width}}  {head}"
    sign = -1 if metric.higher_is_better else 1
    probes = [row for row in shown if is_probe(_group(row))]
    controls = [row for row in shown if is_control(config, _group(row))]
    methods = [row for row in shown if row not in probes and row not in controls]
    for part in (methods, probes, controls):
        for row in sorted(part, key=lambda row: (row["mean"] == MISSING, sign * _number(row["mean"]))):
            yield f"  {group_label(config, _group(row)):{width}}  {_values(row)}"


def _group(row: Row) -> Group:
    return Group(row["task"], row["backbone"], row["pretraining"], row["method"], Subset.parse(row["subset"]))


def _number(text: str) -> float:
    return 0.0 if text == MISSING else float(text)


def _values(row: Row) -> str:
    low, high = row["ci_low"], row["ci_high"]
    interval = MISSING if MISSING in (low, high) else f"{float(low):.3f} to {float(high):.3f}"
    seeds = f"{row['seeds']}/{row['seeds_expected']}"
    trainable = "-" if row["trainable"] == MISSING else f"{int(row['trainable']):,}"
    mean, sd = (value if value == MISSING else f"{float(value):.4f}" for value in (row["mean"], row["sd"]))
    return f"{mean:>8}  {sd:>8}  {interval:>18}  {seeds:>5}  {trainable:>11}"


def _places(config: Config, results: Path) -> Iterator[str]:
    yield f"tables   {layout.TABLES.at(results)}"
    yield f"figures  {layout.FIGURES.at(results)}"
    for cohort in scanned_cohorts(config):
        yield f"QC       {layout.QC_PAGE.at(results, cohort=cohort)}"
