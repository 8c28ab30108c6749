"""The equal search: every method tries the same few learning rates, and validation chooses.

A comparison of methods at one learning rate compares learning rates. Each candidate trains for a share of the
steps that a cell gets, on the training subjects of one split alone. The one with the lowest validation loss
gives the rates of all cells of that fold.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.train.finetune import Shared, finetune, open_shared
from neuropeft.train.lock import lock
from neuropeft.train.loop import CHECKPOINT_SECONDS, NotFiniteError
from neuropeft.train.signals import stop_request
from neuropeft.train.state import FINISHED

RATES = ("lr", "head_lr")
COLUMNS = (*RATES, "steps", "val_loss", "seconds", "chosen", "at_edge")


def search(
    spec: Mapping[str, Any],
    store_dir: str | Path,
    split: str | Path,
    encoder_path: str | Path | None,
    state_dir: str | Path,
    table: str | Path,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Try the candidates of a method on one split and write what each gave.

    Args:
        spec: A cell of the split, as `grid.cell_spec` writes it; `training.search` holds `lr` and `head_lr`,
            factors on the method's own, and `share`, of a cell's steps.
        store_dir: Store of the training cohort.
        split: Split of the cell.
        encoder_path: Pretrained encoder that it starts from; None starts from random weights.
        state_dir: Folder for the states of the candidates.
        table: The table to write, with `COLUMNS`: `chosen` marks the best candidate, and `at_edge` says
            whether a rate of it is the lowest or highest that was tried.
        device: As torch names it; the GPU if there is one.
        checkpoint_seconds: Least time between checkpoints.

    Raises:
        UserError: An input is missing or wrong, or the loss of no candidate is finite.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1.
    """
    tried: list[dict[str, Any]] = []
    with stop_request():
        shared = open_shared([spec], store_dir, [split], encoder_path, device)
        for number, candidate in enumerate(candidates(spec)):
            row = {rate: candidate["method"][rate] for rate in RATES}
            row |= _tried(candidate, shared, Path(state_dir) / str(number), checkpoint_seconds)
            tried.append(row)
            print(f"{spec['cell']}: {row}", file=sys.stderr, flush=True)
    best = min(tried, key=lambda row: row["val_loss"])
    if not math.isfinite(best["val_loss"]):
        raise UserError(f"{spec['cell']}: no loss of the search is finite; give a lower lr")
    for row in tried:
        row |= {"chosen": int(row is best), "at_edge": int(row is best and _at_edge(row, tried))}
    write_tsv(table, tried, COLUMNS)


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
    shorter = {
        **training,
        "search": None,
        "epochs": max(int(training["warmup_epochs"]) + 1, round(share * training["epochs"])),
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


def chosen_rates(table: str | Path) -> dict[str, float]:
    """Return the chosen `lr` and `head_lr` from the table that `search` wrote.

    Raises:
        UserError: The table chooses none.
    """
    chosen = [row for row in read_tsv(table) if row.get("chosen") == "1"]
    if len(chosen) != 1:
        raise UserError(f"{table} does not choose one row; delete it to have the search made again")
    return {rate: float(chosen[0][rate]) for rate in RATES}
