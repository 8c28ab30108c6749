"""The report as one file: what was found first, then scores, figures, cohorts, tables and provenance."""

import base64
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from neuropeft import layout
from neuropeft.cells.costs import Costs, read_costs, trainable_parameters
from neuropeft.config import Config
from neuropeft.contenders import backbone_label, contenders, main_backbones
from neuropeft.errors import UserError
from neuropeft.evaluate.scores import NOT_SCORED, Score, read_scores
from neuropeft.files import MISSING, atomic_path, read_tsv
from neuropeft.grid import (
    Group,
    encoders,
    scanned_cohorts,
    used_backbones,
    used_tasks,
)
from neuropeft.publish.confound_table import confound_records, confound_warnings
from neuropeft.publish.flow_table import flow_records
from neuropeft.publish.html import render
from neuropeft.publish.labels import cohort_label, simulated_text
from neuropeft.publish.report.boards import boards
from neuropeft.publish.report.collapse import collapsed_runs, warnings
from neuropeft.publish.report.deviations import deviation_sheet
from neuropeft.publish.report.findings import findings
from neuropeft.publish.report.provenance import source_sheet, split_sheet, version_sheet, weight_sheet
from neuropeft.publish.report.regimes import advice_sheet, few_tested, regimes
from neuropeft.publish.sheet import Sheet
from neuropeft.subsets import Subset

TABLE = re.compile(r"<!-- table -->(.*)<!-- end of table -->", re.DOTALL)
TITLE = re.compile(r"<title>(.*)</title>")
CAPTIONS = {
    "figure1": "Performance against trained parameters.",
    "figure2": "Performance against the number of training subjects, on further backbones.",
    "figure3": "Performance against the number of training subjects.",
    "figure4": "Performance against what a cell costs.",
    "ranks": "Mean ranks of methods over tasks, cohorts and subsets, and which are not told apart.",
    "interpolation": "Between the start and the fine-tuned weights: in-domain against zero-shot.",
    "robustness": "What becomes of the scores when test scans are changed.",
    "saliency": "Where in the brain methods look, beside random weights.",
    "reliability": "How often predicted probabilities come true.",
    "age_errors": "Errors of predicted age by age.",
    "reconstructions": "What a masked autoencoder makes of what it does not see.",
    "segmentations": "The best, the median and the worst test subject.",
    "generations": "Images drawn from texts of the test side, methods in the order of their mean rank.",
    "losses_pretraining": "Losses of the pretrainings.",
    "losses_finetuning": "Losses of the fine-tunes.",
}
SCREEN_DPI, PRINT_DPI, LARGER = 96, 300, 1.5


def write_report(
    config: Config, results: Path, tables: Sequence[Path], figures: Sequence[Path], out: Path
) -> None:
    """Write the report, one page of HTML that loads nothing.

    Args:
        config: the configuration.
        results: the results folder.
        tables: pages of the tables that it shows; what else lies beside them may be of another configuration.
        figures: PNG files of the figures that it shows.
        out: the file to write.

    Raises:
        UserError: nothing has been scored yet, or a file of results cannot be read.
    """
    scores = read_scores(config, results, with_draws=True)
    if all(score.reason == NOT_SCORED for score in scores):
        raise UserError(f"there are no scores in {results}: run the workflow first")
    costs = read_costs(config, results)
    content = _content(config, results, scores, costs)
    page = render("report.html", **content, tables=_tables(tables), figures=_figures(config, figures))
    with atomic_path(out) as partial:
        partial.write_text(page, encoding="utf-8")


def _content(config: Config, results: Path, scores: Sequence[Score], costs: Costs) -> dict[str, Any]:
    trainable = trainable_parameters(costs)
    seconds, found = _seconds(costs), regimes(config, scores)
    confounded = confound_warnings(config, confound_records(config, results))
    return {
        "simulated": simulated_text(config),
        "facts": _facts(config, scores, costs),
        "findings": findings(config, found, trainable),
        "advice": advice_sheet(config, found, trainable, seconds, _subjects(costs)),
        "warnings": [
            *_missing(scores),
            *few_tested(config, found),
            *(text for some in confounded.values() for text in some),
            *warnings(config, collapsed_runs(config, results), contenders(config)),
        ],
        "boards": boards(config, scores, trainable, seconds),
        "deviations": deviation_sheet(config),
        "flow": flow_records(config, results),
        "quality": _quality_sheet(config, results),
        "provenance": [
            version_sheet(costs),
            weight_sheet(config, results),
            split_sheet(config, results),
            source_sheet(config),
        ],
        "configuration": yaml.safe_dump(
            config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
        ),
        "sorter": base64.b64encode((_sorter() / "dt_bundle.js").read_bytes()).decode(),
        "sorter_style": (_sorter() / "dt_bundle.css").read_text(encoding="utf-8"),
    }


def _sorter() -> Path:
    """Return the folder of DataTables as itables brings it, without importing that, and pandas with it."""
    found = find_spec("itables")
    assert found is not None, "neuropeft requires itables"
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "html")


def _facts(config: Config, scores: Sequence[Score], costs: Costs) -> dict[str, str]:
    """Return what was run, and what it cost, in a few words each."""
    done = [cost for cost in costs.values() if cost is not None]
    hours: Counter[str] = Counter()
    for cost in done:
        hours[cost["device"]] += cost["train_seconds"] / 3600
    joule = [cost["energy_joule"] for cost in done if cost.get("energy_joule") is not None]
    energy = f"; {sum(joule) / 3.6e6:,.2f} kWh of {len(joule)} cells" if joule else ""
    methods = dict.fromkeys(one.short for one in contenders(config) if one.is_method)
    starts = dict.fromkeys(one.pretraining for one in contenders(config) if one.sort == "cells")
    seeds = sorted({cell.seed for cell in costs})
    return {
        "Tasks": ", ".join(
            f"{task} ({config.tasks[task].kind}) on {cohort_label(config, config.tasks[task].train)}"
            for task in used_tasks(config)
        ),
        "Cells": f"{len(done)} of {len(costs)} trained, seeds {', '.join(map(str, seeds))}"
        + (f", {config.splits.folds}-fold" if config.splits.folds else ""),
        "Backbones": ", ".join(backbone_label(config, name) for name in used_backbones(config)),
        "Methods": ", ".join(methods),
        "Starts": ", ".join("random weights" if start == "none" else start for start in starts),
        "Training took": (
            ", ".join(f"{spent:,.2g} hours on {device}" for device, spent in hours.items()) or MISSING
        )
        + energy
        + (f"; encoders pretrained: {len(encoders(config))}" if encoders(config) else ""),
    }


def _subjects(costs: Costs) -> dict[tuple[str, Subset], str]:
    """Return how many subjects cells of a task and subset were trained on."""
    counts: dict[tuple[str, Subset], set[int]] = defaultdict(set)
    for cell, cost in costs.items():
        if cost is not None and cost.get("train_subjects") is not None:
            counts[cell.task, cell.subset].add(int(cost["train_subjects"]))
    return {
        key: f"{min(some):,}" if len(some) == 1 else f"{min(some):,} to {max(some):,}"
        for key, some in counts.items()
    }


def _seconds(costs: Costs) -> dict[Group, float]:
    found: dict[Group, list[float]] = defaultdict(list)
    for cell, cost in costs.items():
        if cost is not None:
            found[cell.group].append(cost["train_seconds"])
    return {group: fmean(some) for group, some in found.items()}


def _missing(scores: Sequence[Score]) -> list[str]:
    lacking = dict.fromkeys(
        (score.contender, score.reason)
        for score in scores
        if score.contender.sort == "cells" and not score.complete
    )
    methods = dict.fromkeys(one for one, _ in lacking)
    if not methods:
        return []
    named = ", ".join(f"{one.label} for {one.task} at {one.subset.label}" for one in list(methods)[:5])
    more = f" and {len(methods) - 5} more" if len(methods) > 5 else ""
    left_out = "they are left out of what is compared here, and marked in the tables"
    return [f"Scores are missing of {named}{more}: {left_out}."]


def _tables(pages: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the tables that have rows, as the parts of their pages between marks."""
    found = []
    for path in pages:
        page = path.read_text(encoding="utf-8")
        title, content = TITLE.search(page), TABLE.search(page)
        if title and content and "</td>" in content[1]:
            wide = path.stem in ("table3", "table4")
            found.append({"title": title[1], "content": content[1], "open": not wide})
    return found


def _figures(config: Config, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the figures, but that of further backbones where there are none."""
    empty = [] if len(main_backbones(config)) > 1 else ["figure2"]
    found = []
    for path in images:
        if path.stem not in empty:
            image = path.read_bytes()
            # A PNG says its width in pixels behind its first chunk's name; print is small for a screen.
            width = int.from_bytes(image[16:20]) * SCREEN_DPI / PRINT_DPI * LARGER
            found.append(
                {
                    "name": path.stem,
                    "caption": CAPTIONS.get(path.stem) or CAPTIONS.get(path.stem.partition("_")[0], ""),
                    "width": round(width),
                    "data": base64.b64encode(image).decode(),
                }
            )
    return found


def _quality_sheet(config: Config, results: Path) -> Sheet:
    """Lay out how many scans of each cohort stand out, by what."""
    rows = []
    for cohort in scanned_cohorts(config):
        path = layout.QC_TABLE.at(results, cohort=cohort)
        if path.is_file():
            scans = read_tsv(path)
            flags = Counter(
                flag for row in scans if row["flags"] != MISSING for flag in row["flags"].split(",")
            )
            flagged = sum(row["flags"] != MISSING for row in scans)
            by = ", ".join(f"{name} {count}" for name, count in flags.most_common()) or "-"
            rows.append([cohort_label(config, cohort), by, f"{len(scans):,}", f"{flagged:,}"])
    notes = [
        "Flagged scans are used: a number of theirs lies far from its cohort's median, or is implausible. "
        f"Look at {layout.QC_PAGE.of(cohort='COHORT')} before you believe anything."
    ]
    header = ("Cohort", "Flagged by", "Scans prepared", "Flagged")
    return Sheet("quality", "Scans that stand out.", header, rows, notes, text_columns=2)
