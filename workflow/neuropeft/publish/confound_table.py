"""The table of confounds: from what site and sex can be predicted; warnings where that may make scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders
from neuropeft.evaluate.compare import ALPHA
from neuropeft.evaluate.confounds import COLUMNS, FEATURES, FEWEST, LABELS, VOXELS
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import NO_PRETRAINING, used_tasks
from neuropeft.publish.cells import Column, intervals, lay_out, numbers, p_text, plain
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.sheet import Sheet

CHANCE = 0.5
CONFOUND_COLUMNS = ("task", "cohort", *COLUMNS, "above_chance")
NOTES = (
    "AUC: how well the sites (the sexes) of the training cohort are separated; of several sites the mean "
    f"over them. One scan each; sites of fewer than {FEWEST} subjects are left out.",
    "Labels: from what is predicted. Voxels: averaged to 10 x 10 x 10. Frozen: from the mean token, before "
    "anything is adapted. Of these by a linear discriminant, on subjects that it was not fitted on; above "
    "chance: the 95 % interval over subjects lies above 0.5; it is somewhat too narrow, since the "
    "discriminant is not fitted anew in its draws.",
    "Others: by the ranks of a method's predictions, among test subjects of the same class (of a value: of "
    "the same fifth, less the line by target), so that only what goes beyond the label counts. The direction "
    "is chosen, so chance is a little above 0.5; above chance: p < 0.05, by permuting sites within classes.",
)
Record = dict[str, Any]


def confound_records(config: Config, results: Path) -> list[Record]:
    """Return a row, with `CONFOUND_COLUMNS`, for each task, confounder and source; none that is not there."""
    found: list[Record] = []
    for task in used_tasks(config):
        path = layout.CONFOUNDS.at(results, task=task)
        for row in read_tsv(path) if path.is_file() else []:
            names = "auc", "ci_low", "ci_high", "p"
            numbers = {name: None if row[name] == MISSING else float(row[name]) for name in names}
            p, low = numbers["p"], numbers["ci_low"]
            above = p < ALPHA if p is not None else low is not None and low > CHANCE
            place = {"task": task, "cohort": config.tasks[task].train}
            found.append({**place, **row, **numbers, "above_chance": above})
    return found


def confound_warnings(config: Config, records: Sequence[Record]) -> dict[str, list[str]]:
    """Return a sentence for each task and confounder that a score may come from."""
    names, found = _names(config), dict[str, list[str]]()
    for first in records:
        if first["source"] != LABELS or not first["above_chance"]:
            continue
        above = [
            one
            for one in records
            if (one["task"], one["confounder"]) == (first["task"], first["confounder"])
            and one["above_chance"]
        ]
        seen = [names(one) for one in above if one["source"] in (VOXELS, FEATURES)]
        predicted = [names(one) for one in above if one["source"] not in (LABELS, VOXELS, FEATURES)]
        if seen or predicted:
            text = (
                f"Warning: {first['task']} goes with {first['confounder']} (predicted from the labels with "
                f"an AUC of {first['auc']:.2f}, {first['ci_low']:.2f} to {first['ci_high']:.2f})"
            )
            text += f", which can be predicted from {_listed(seen)}" if seen else ""
            text += ": scores may come from it."
            if predicted:
                text += f" Beyond the label, the predictions of {_listed(predicted)} show it."
            found.setdefault(first["task"], []).append(text)
    return found


def confound_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out the table for readers."""
    columns = (
        plain("Task", "task"),
        Column("Cohort", lambda row: cohort_label(config, row["cohort"])),
        plain("What", "confounder"),
        plain("Levels", "levels"),
        Column("Predicted from", _names(config)),
        plain("Subjects", "n"),
        numbers("AUC", "auc", ".3f"),
        intervals("ci", ".3f"),
        Column("p", lambda row: p_text(row.get("p"))),
        Column("Above chance", lambda row: "yes" if row["above_chance"] else "-"),
    )
    warnings = [text for texts in confound_warnings(config, records).values() for text in texts]
    caption = "From what site and sex can be predicted."
    if not records:
        caption += " Empty: no cohort has two sites or sexes of enough subjects, or nothing is predicted yet."
    return lay_out("confounds", caption, columns, records, [*warnings, *NOTES], parts=3, text_columns=5)


def _names(config: Config) -> Any:
    """Return what gives the name of a record's source."""
    labels: dict[tuple[str, ...], Contender] = {}
    for one in contenders(config):
        labels.setdefault(one.line, one)

    def name(record: Record) -> str:
        backbone, start, source = record["backbone"], record["pretraining"], record["source"]
        if source != FEATURES:
            return labels[backbone, start, source].label if backbone != MISSING else source
        owner = labels[backbone, start, "probe_mean"].owner.removesuffix(":")
        return owner[0].lower() + owner[1:] + ("" if start == NO_PRETRAINING else f" from {start}")

    return name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
