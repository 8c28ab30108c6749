"""The equal search: every method tries the same few learning rates, and validation chooses.

A comparison of methods at one learning rate compares the learning rates. Each candidate trains a share of the steps
that a cell gets, on the training subjects of one split alone; the candidate with the lowest validation loss gives the
rates of all cells of that split's fold.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from neuropeft.errors import UserError
from neuropeft.evaluate.costs import read_cost
from neuropeft.files import read_tsv, write_tsv
from neuropeft.train.finetune import finetune, open_shared
from neuropeft.train.lock import lock
from neuropeft.train.loop import CHECKPOINT_SECONDS
from neuropeft.train.signals import stop_request
from neuropeft.train.state import FINISHED

COLUMNS = ("fold", "lr", "head_lr", "steps", "val_loss", "seconds", "chosen", "at_edge")

Rates = Mapping[int, Mapping[str, float]]  # by fold: lr and head_lr


def search(
    specs: Sequence[Mapping[str, Any]],
    store_dir: str | Path,
    splits: Iterable[str | Path],
    encoders: Sequence[str | Path],
    state_root: str | Path,
    table: str | Path,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Try the candidates of a method on every fold and write what each gave.

    Args:
        specs: A cell of each fold, as `grid.cell_spec` writes it; its training.search holds `lr` and `head_lr`,
            factors on the method's own, and `share`, of a cell's steps.
        store_dir: Store of the training cohort.
        splits: Splits of the cells.
        encoders: Pretrained encoders that they start from; none starts from random weights.
        state_root: Folder for the states of the candidates.
        table: The table to write, with `COLUMNS`.
        device: As torch names it; the GPU if there is one.
        checkpoint_seconds: Least time between checkpoints.
    """
    rows: list[dict[str, object]] = []
    with stop_request():
        shared = open_shared(specs, store_dir, splits, encoders, device)
        for spec in specs:
            tried = []
            for number, candidate in enumerate(candidates(spec)):
                state = Path(state_root) / f"fold-{spec['fold']}" / str(number)
                with lock(state):
                    finetune(candidate, shared, state, checkpoint_seconds)
                cost = read_cost(state / FINISHED / "cost.json")
                method = candidate["method"]
                tried.append(
                    {
                        "fold": spec["fold"],
                        "lr": method["lr"],
                        "head_lr": method["head_lr"],
                        "steps": cost["steps"],
                        "val_loss": cost["best_val_loss"],
                        "seconds": round(cost["train_seconds"], 1),
                    }
                )
            rows += _marked(tried)
            best = next(row for row in rows[-len(tried) :] if row["chosen"])
            print(
                f"{spec['cell']}: of {len(tried)} candidates lr {best['lr']:.3g}, head_lr {best['head_lr']:.3g}",
                file=sys.stderr,
                flush=True,
            )
    write_tsv(table, rows, COLUMNS)


def candidates(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of the candidates for a cell: its own, with other rates and a share of the steps."""
    training, method = spec["training"], spec["method"]
    wanted = training["search"]
    share = float(wanted["share"])
    shorter = {
        **training,
        "search": None,
        "epochs": max(int(training["warmup_epochs"]) + 1, round(share * training["epochs"])),
        "min_steps": round(share * training["min_steps"]),
    }
    head = method.get("head_lr") or method["lr"]
    return [
        {
            **spec,
            "training": shorter,
            "method": {**method, "lr": method["lr"] * factor, "head_lr": head * head_factor},
        }
        for factor, head_factor in product(wanted["lr"], wanted["head_lr"])
    ]


def _marked(tried: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Mark the best candidate, and whether a rate of it lies at the edge of what was tried."""
    best = min(tried, key=lambda row: row["val_loss"])
    at_edge = any(
        len({row[rate] for row in tried}) > 1
        and best[rate] in (min(row[rate] for row in tried), max(row[rate] for row in tried))
        for rate in ("lr", "head_lr")
    )
    return [
        {**row, "chosen": int(row is best), "at_edge": int(at_edge) if row is best else None} for row in tried
    ]


def chosen_rates(table: str | Path) -> dict[int, dict[str, float]]:
    """Return the chosen rates of each fold from the table that `search` wrote."""
    rows = [row for row in read_tsv(table) if row["chosen"] == "1"]
    return {int(row["fold"]): {"lr": float(row["lr"]), "head_lr": float(row["head_lr"])} for row in rows}


def with_rates(spec: Mapping[str, Any], rates: Rates) -> Mapping[str, Any]:
    """Return a method's settings with the rates chosen for the cell's fold; as they are without a search.

    Raises:
        UserError: The search has not seen the cell's fold.
    """
    if not rates:
        return spec["method"]
    try:
        return {**spec["method"], **rates[int(spec["fold"])]}
    except KeyError:
        raise UserError(
            f"{spec['cell']}: the search has no fold {spec['fold']}; delete its table to have it made again"
        ) from None
