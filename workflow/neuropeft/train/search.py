"""The equal search: every method tries the same few learning rates, and validation chooses.

A comparison of methods at one learning rate compares learning rates. Each candidate trains for a share of the
steps that a cell gets, on the training subjects of a fold alone. The one with the lowest validation loss
gives the rates of all cells of that fold.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import write_tsv
from neuropeft.records import write_record
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS
from neuropeft.train.finetune import Shared, finetune, open_shared, split_of
from neuropeft.train.lock import lock
from neuropeft.train.loop import NotFiniteError
from neuropeft.train.signals import stop_request
from neuropeft.train.sources import RATES, cell_sources, search_sources
from neuropeft.train.state import FINISHED

COLUMNS = ("fold", *RATES, "steps", "val_loss", "seconds", "chosen", "at_edge")


def search(
    specs: Mapping[str, Mapping[str, Any]],
    store_dir: str | Path,
    splits: Iterable[str | Path],
    encoder_path: str | Path | None,
    state_root: str | Path,
    table: str | Path,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Try the candidates of a method on each fold and write what each gave.

    Args:
        specs: {path: settings} of a cell of each fold, as `grid.cell_specs` writes them; `training.search`
            holds `lr` and `head_lr`, factors on the method's own, and `share`, of a cell's steps.
        store_dir: Store of the training cohort.
        splits: Splits of the cells.
        encoder_path: Pretrained encoder that they start from; None starts from random weights.
        state_root: Folder of the states of all candidates.
        table: The table to write, with `COLUMNS`: `chosen` marks the best candidate of a fold, and `at_edge`
            says whether a rate of it is the lowest or highest that was tried.
        device: As torch names it; the GPU if there is one.
        checkpoint_seconds: Least time between checkpoints.

    Raises:
        UserError: An input is missing or wrong, or the loss of no candidate is finite.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1.
    """
    rows: list[dict[str, Any]] = []
    with stop_request():
        shared = open_shared(specs.values(), store_dir, splits, encoder_path, device)
        scans = shared.store.path / "scans.tsv"
        made_from = {
            path: cell_sources(spec, split_of(shared.splits, spec), scans, shared.encoder, None)
            for path, spec in specs.items()
        }
        for path, spec in specs.items():
            tried = []
            for number, candidate in enumerate(candidates(spec)):
                row = {"fold": spec["fold"], **{rate: candidate["method"][rate] for rate in RATES}}
                row |= _tried(candidate, shared, Path(state_root) / path / str(number), checkpoint_seconds)
                tried.append(row)
                print(f"{spec['cell']}: {row}", file=sys.stderr, flush=True)
            rows += _marked(tried, spec["cell"])
    write_tsv(table, rows, COLUMNS)
    write_record([Path(table)], search_sources(made_from))


def _marked(tried: Sequence[dict[str, Any]], cell: str) -> list[dict[str, Any]]:
    """Mark the best candidate of a fold."""
    best = min(tried, key=lambda row: row["val_loss"])
    if not math.isfinite(best["val_loss"]):
        raise UserError(f"{cell}: no loss of the search is finite; give a lower lr")
    return [
        {**row, "chosen": int(row is best), "at_edge": int(row is best and _at_edge(row, tried))}
        for row in tried
    ]


def _tried(
    candidate: Mapping[str, Any], shared: Shared, state: Path, checkpoint_seconds: float
) -> dict[str, Any]:
    """Train a candidate; return what it gave. Without a finite loss, it is never the best."""
    try:
        with lock(state):
            finetune(candidate, shared, state, checkpoint_seconds)
    except NotFiniteError as error:
        print(error, file=sys.stderr, flush=True)
        return {"steps": None, "val_loss": math.inf, "seconds": None}
    cost = json.loads((state / FINISHED / "cost.json").read_text(encoding="utf-8"))
    return {"steps": cost["steps"], "val_loss": cost["best_val_loss"], "seconds": cost["train_seconds"]}


def candidates(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the candidates for a cell: its own, with other rates and fewer steps."""
    training, method = spec["training"], spec["method"]
    wanted = training["search"]
    share = float(wanted["share"])
    warmup = min(int(training["warmup_epochs"]), max(1, round(share * training["warmup_epochs"])))
    shorter = {
        **training,
        "search": None,
        "epochs": max(warmup + 1, round(share * training["epochs"])),
        "warmup_epochs": warmup,
        "min_steps": round(share * training["min_steps"]),
    }
    head_lr = method.get("head_lr") or method["lr"]
    return [
        {
            **spec,
            "training": shorter,
            "method": {**method, "lr": method["lr"] * one, "head_lr": head_lr * other},
        }
        for one, other in product(wanted["lr"], wanted["head_lr"])
    ]


def _at_edge(best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> bool:
    values = {rate: {row[rate] for row in tried} for rate in RATES}
    return any(
        len(values[rate]) > 1 and best[rate] in (min(values[rate]), max(values[rate])) for rate in RATES
    )
