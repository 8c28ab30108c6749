"""The flow of scans and subjects: how many came in, were left out and why, and went to each side."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.cohorts.splits import SIDES
from neuropeft.config import Config
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import cells, splits_of, used_cohorts, used_tasks
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.sheet import Sheet

FLOW_COLUMNS = (
    "cohort",
    "task",
    "role",
    "found",
    "excluded",
    "reasons",
    "ready",
    "labelled",
    "subjects",
    *SIDES,
)
Record = dict[str, Any]


def flow_records(config: Config, results: Path) -> list[Record]:
    """Return a row for each cohort and task that it serves, or for a cohort that is pretrained on alone.

    A side holds how many subjects splits have there: a number, or `58 to 62` where splits differ.
    """
    records = []
    for cohort in used_cohorts(config):
        common = {"cohort": cohort_label(config, cohort), **_came_in(config, results, cohort)}
        serves = [
            name
            for name in used_tasks(config)
            if cohort in (config.tasks[name].train, *config.tasks[name].zero_shot)
        ]
        records += [{**common, "task": name, **_of_task(config, results, name, cohort)} for name in serves]
        if not serves:
            records.append({**common, "task": None, "role": "pretraining"})
    return records


def _came_in(config: Config, results: Path, cohort: str) -> Record:
    index, left_out, stored = (
        place.at(results, cohort=cohort) for place in (layout.SCANS, layout.EXCLUDED, layout.STORED_SCANS)
    )
    synthetic = config.cohorts[cohort].synthetic
    excluded = read_tsv(left_out) if left_out.is_file() else None
    reasons = Counter(f"{row['step']}: {_without_names(row)}" for row in excluded or [])
    return {
        "found": synthetic.volumes if synthetic else len(read_tsv(index)) if index.is_file() else None,
        "excluded": None if excluded is None else len(excluded),
        "reasons": "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or None,
        "ready": len(read_tsv(stored)) if stored.is_file() else None,
    }


def _without_names(row: Mapping[str, str]) -> str:
    """Return why a scan was left out, but not where it lies: equal reasons count together."""
    return re.sub(r"(?<!\S)/\S+", "a file", row["reason"].replace(row["path"], "the scan"))


def _of_task(config: Config, results: Path, task: str, cohort: str) -> Record:
    labels, stored = (
        place.at(results, task=task, cohort=cohort) for place in (layout.LABELS, layout.STORED_SCANS)
    )
    if not (labels.is_file() and stored.is_file()):
        return {"role": MISSING}
    ready = {row["scan_id"] for row in read_tsv(stored)}
    rows = [row for row in read_tsv(labels) if row["scan_id"] in ready]
    counted = {"labelled": len(rows), "subjects": len({row["subject"] for row in rows})}
    if cohort != config.tasks[task].train:
        return {"role": "zero-shot", **counted, "test": counted["subjects"]}
    paths = [
        layout.SPLIT.at(results, task=task, split=split)
        for split in splits_of(cell for cell in cells(config) if cell.task == task)
    ]
    sides = [subjects_of_sides(path) for path in paths if path.is_file()]
    return {"role": "trained on", **counted, **{side: _range([one[side] for one in sides]) for side in SIDES}}


def subjects_of_sides(split: Path) -> Counter[str]:
    """Return how many subjects are on each side of a split."""
    return Counter({row["subject"]: row["side"] for row in read_tsv(split)}.values())


def _range(numbers: Sequence[int]) -> str | int | None:
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    return low if low == high else f"{low} to {high}"


def flow_sheet(config: Config, records: Sequence[Mapping[str, Any]]) -> Sheet:
    """Lay out the flow for readers."""
    header = (
        *("Cohort", "Task", "Role", "Why excluded"),
        *("Scans found", "Excluded", "Ready", "With a label", "Subjects", "Train", "Validation", "Test"),
    )
    columns = (
        *("cohort", "task", "role", "reasons"),
        *("found", "excluded", "ready", "labelled", "subjects", *SIDES),
    )
    rows = [
        [MISSING if row.get(column) is None else _text(row[column]) for column in columns] for row in records
    ]
    notes = [
        "Found: scans of the cohort's table or folder. Excluded: what could not be read or processed; each "
        f"scan with its reason is in {layout.EXCLUDED.of(cohort='COHORT')}. With a label: ready scans that "
        "the task has a target for, and that pass its filter; the others that pass it are in "
        f"{layout.LEFT_OUT.of(task='TASK', cohort='COHORT')}.",
        "Train, validation and test are subjects of a split, at all training subjects"
        + (
            f"; with {config.splits.folds} folds every subject is tested on once."
            if config.splits.folds
            else "."
        ),
    ]
    caption = "Where scans and subjects went."
    return Sheet("flow", caption, header, rows, notes, part_breaks(rows, 1), text_columns=4)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
