"""The table of a search: how much was tried, and what was chosen for each method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.config import Backbone, Config, Method, label_of_kind
from neuropeft.config.search import Choices, Range, Search
from neuropeft.grid import cells
from neuropeft.grouping import grouped
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.sheet import Sheet
from neuropeft.searches import Searches
from neuropeft.train.choices import PRUNED, read_choice_rows, read_trials

GROUP = ("task", "backbone", "pretraining", "method")
LAST = ("val_loss", "at_edge")
EDGE = "*"
Record = dict[str, Any]


def search_records(config: Config, results: Path) -> list[Record]:
    """Return a row for each choice that is there: what it is for, of how many trials, and what was chosen."""
    searches = Searches(config, cells(config))
    records: list[Record] = []
    for one in searches.all():
        chosen = layout.CHOICES.at(results, **one.names)
        if not chosen.exists():  # of partial tables
            continue
        tables = [layout.TRIALS.at(results, **one.names, first=first) for first in searches.firsts(one)]
        tried = [row for table in tables for row in read_trials(table)]
        for row in read_choice_rows(chosen):
            of_fold = [trial for trial in tried if trial["fold"] == row["fold"]]
            records.append(
                {
                    **dict(zip(GROUP, one[:4], strict=True)),
                    "fold": row["fold"],
                    "trials": len(of_fold),
                    "pruned": sum(trial["outcome"] == PRUNED for trial in of_fold),
                    **{name: value for name, value in row.items() if name not in ("fold", "trial")},
                }
            )
    return records


def search_columns(records: Sequence[Record]) -> list[str]:
    """Return the columns of the rows: those of settings in the order that they come."""
    found = dict.fromkeys(name for record in records for name in record)
    return [*(name for name in found if name not in LAST), *LAST]


def search_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method: its choices, those of several folds beside each other."""
    search = config.training.search
    assert search is not None, "there is a search"
    groups = grouped(records, lambda record: tuple(record[key] for key in GROUP))
    names = [name for name in search.ranges if any(name in record for record in records)]
    body = [
        [
            task,
            label_of_kind(Backbone, backbone),
            start,
            label_of_kind(Method, method),
            str(max(record["trials"] for record in of_group)),
            *(" ".join(_value(record, name) for record in of_group) for name in names),
        ]
        for (task, backbone, start, method), of_group in groups.items()
    ]
    return Sheet(
        "search",
        "Settings that the search has chosen for each method, by validation.",
        ("Task", "Backbone", "Start", "Method", "Trials", *names),
        body,
        _notes(search, any(record["fold"] for record in records)),
        part_breaks(body, 1),
        text_columns=4,
    )


def _value(record: Record, name: str) -> str:
    if name not in record:
        return "n/a"
    value = record[name]
    if isinstance(value, list):
        return "/".join(str(entry) or "none" for entry in value)
    return f"{value:.3g}" + EDGE * (name in (record.get("at_edge", "")).split(", "))


def _notes(search: Search, folds: bool) -> list[str]:
    per_fold = " on each fold; choices stand in the order of the folds" if folds else ""
    tried = "; ".join(f"{name} {_tried(values)}" for name, values in search.ranges.items())
    return [
        f"Every method has the same number of trials ({search.sampler}, pruner {search.pruner})"
        f", each of {search.share:.0%} of a cell's steps{per_fold}.",
        f"Tried: {tried}. lr and head_lr are tried as factors on the method's own.",
        f"{EDGE} at the edge of what was tried: a better value may lie beyond it.",
    ]


def _tried(values: Range | Choices) -> str:
    if isinstance(values, Range):
        return f"{values.low:g} to {values.high:g}" + " (logarithmic)" * values.log
    return ", ".join((value or "none") if isinstance(value, str) else f"{value:g}" for value in values)
