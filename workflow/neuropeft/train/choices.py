"""What trials have given, what is chosen of it, and how that changes the settings of a cell."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.records import AGAIN, file_digest, write_record
from neuropeft.train.sources import choice_sources

if TYPE_CHECKING:  # pydantic, which no fine-tune shall import
    from neuropeft.config.search import Search

Choice = Mapping[str, Any]  # by the names of settings; learning rates themselves, not factors
Row = dict[str, Any]

# Tables of trials hold a column per setting that is tried between these; `drawn` are the settings as Optuna
# draws them, learning rates as factors, and `losses` those of each validation.
FIRST = ("fold", "trial")
LAST = ("outcome", "steps", "val_loss", "seconds", "drawn", "losses")
FINISHED_TRIAL, PRUNED, NOT_FINITE = ("finished", "pruned", "not finite")


def with_choice(spec: Mapping[str, Any], choice: Choice | None) -> dict[str, Any]:
    """Return the settings of a cell with what was chosen: of its training, or else of its method."""
    training, method = dict(spec["training"]), dict(spec["method"])
    for name, value in (choice or {}).items():
        (training if name in training else method)[name] = value
    return {**spec, "training": training, "method": method}


def choose(tables: Sequence[str | Path], search: "Search", out: str | Path) -> None:
    """Choose, for each fold, the trial of the lowest validation loss.

    Args:
        tables: All tables of trials of a method.
        search: What was tried.
        out: The table to write: fold, trial, val_loss, the settings, and `at_edge`, the names of those that
            lie at the edge of what was tried.

    Raises:
        UserError: A table is damaged, or no trial of a fold has ended with a finite loss.
    """
    from neuropeft.config.search import at_edge

    rows = [row for table in tables for row in read_trials(table)]
    chosen = []
    for fold in sorted({row["fold"] for row in rows}):
        finished = [row for row in rows if row["fold"] == fold and row["outcome"] == FINISHED_TRIAL]
        if not finished:
            where = f" of fold {fold}" if fold else ""
            raise UserError(
                f"{tables[0]}: no trial{where} has a finite loss; give the method a lower lr, or the search "
                "lower ranges.lr"
            )
        best = min(finished, key=lambda row: (row["val_loss"], row["trial"]))
        ranges = {name: search.ranges[name.partition(".")[0]] for name in best["drawn"]}
        edges = [name for name, value in best["drawn"].items() if at_edge(ranges[name], value)]
        settings = {name: best[name] for name in search.ranges if name in best}
        named = {"fold": fold, "trial": best["trial"], "val_loss": best["val_loss"]}
        chosen.append({**named, **settings, "at_edge": ", ".join(edges) or None})
    columns = (*FIRST, "val_loss", *(name for name in chosen[0] if name in search.ranges), "at_edge")
    write_tsv(out, chosen, columns)
    found = [file_digest(table) for table in tables]
    write_record([Path(out)], choice_sources(search.model_dump(mode="json"), found))


def read_trials(table: str | Path) -> list[Row]:
    """Return the rows of a table of trials.

    Raises:
        UserError: The table is none, or is damaged.
    """
    numbers: dict[str, Callable[[str], Any]] = {
        **{"fold": int, "trial": int, "val_loss": float},
        **{"drawn": json.loads, "losses": json.loads},
    }
    try:
        return [
            {**row, **{name: read(row[name]) for name, read in numbers.items()}} for row in read_tsv(table)
        ]
    except (KeyError, ValueError) as error:
        raise UserError(f"{table} is no table of trials; {AGAIN}") from error


def read_choice_rows(table: str | Path) -> list[Row]:
    """Return the rows of a table of choices: settings as values, those that a method does not have left out.

    Raises:
        UserError: The table is none, or does not hold one row of each fold.
    """
    try:
        rows = [
            {
                name: value if name == "at_edge" else json.loads(value)
                for name, value in row.items()
                if value != MISSING
            }
            for row in read_tsv(table)
        ]
        folds = {row["fold"] for row in rows}
    except (KeyError, ValueError) as error:
        raise UserError(f"{table} is no table of choices; {AGAIN}") from error
    if not rows or len(folds) != len(rows):
        raise UserError(f"{table} does not hold one row of each fold; {AGAIN}")
    return rows


def read_choices(table: str | Path) -> dict[int, dict[str, Any]]:
    """Return the settings chosen for each fold; see `read_choice_rows` for what it raises."""
    others = {*FIRST, "val_loss", "at_edge"}
    rows = read_choice_rows(table)
    return {row["fold"]: {name: row[name] for name in row if name not in others} for row in rows}
