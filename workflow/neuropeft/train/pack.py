"""Train many cells in one process: it imports the packages and loads the volumes once for all of them."""

import gc
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.train import slurm
from neuropeft.train.checkpoint import CHECKPOINT_SECONDS
from neuropeft.train.choices import Choice, read_choices
from neuropeft.train.cost import seconds_since_process_start
from neuropeft.train.finetune import Shared, finetune, open_shared
from neuropeft.train.lock import lock
from neuropeft.train.signals import stop_request
from neuropeft.train.state import forget_failure, note_failure, why_failed

COLUMNS = ("cell", "outcome", "seconds")
TRAINED, KEPT = "trained", "kept"


def finetune_pack(
    specs: Mapping[str, Mapping[str, Any]],
    store_dir: str | Path,
    splits: Iterable[str | Path],
    encoder_path: str | Path | None,
    state_root: str | Path,
    table: str | Path,
    choices: str | Path | None = None,
    device: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train the cells of a pack, one after another, and list them in `table`.

    Each gives what it gives alone. A cell that fails does not keep the others from being trained; what has
    been trained before is kept.

    Args:
        specs: {path: settings} of each cell, as `grid.cell_specs` writes them; a cell's state, finished files
            included, is in the folder `path` of `state_root`.
        store_dir: Store of the training cohort.
        splits: Split of the cells' task for each of their seeds and folds, called as `split_names` says.
        encoder_path: Pretrained encoder of all of them; None starts from random weights.
        state_root: Folder of the states of all cells.
        table: The list to write when all are trained: cell, outcome (`trained` or `kept`), seconds.
        choices: What `choose` wrote for each fold, in place of the cells' own settings.
        device: As torch names it; the GPU if there is one.
        checkpoint_seconds: Least time between checkpoints.

    Raises:
        UserError: Some cells could not be trained; each has its reason in `failed.txt` of its state.
        SystemExit: With `signals.REQUEUE_EXIT_CODE`, after SIGTERM or SIGUSR1.
    """
    root, rows, failed = Path(state_root), [], []
    chosen = {} if choices is None else read_choices(choices)
    with stop_request() as stop:
        shared = open_shared(specs.values(), store_dir, splits, encoder_path, device)
        _disown(Path(table), specs)
        # What failed before comes last: should it take the process down, the others are done by then.
        order = sorted(specs, key=lambda path: why_failed(root / path) is not None)
        for number, path in enumerate(order, start=1):
            if stop.received:
                slurm.leave(stop.signals)
            started = time.monotonic()
            # The start of the process counts as the first cell's.
            began = 0.0 if number == 1 else seconds_since_process_start() or 0.0
            outcome = _train(
                specs[path],
                shared,
                root / path,
                checkpoint_seconds,
                began,
                chosen.get(int(specs[path]["fold"])),
            )
            seconds = time.monotonic() - started
            print(
                f"cell {number}/{len(specs)}, {path}: {outcome or 'failed'} after {seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
            if outcome is None:
                failed.append(path)
            else:
                rows.append({"cell": path, "outcome": outcome, "seconds": f"{seconds:.1f}"})
    if failed:
        raise UserError(
            f"{len(failed)} of {len(specs)} cells failed, the others are kept: "
            + "; ".join(f"{why_failed(root / path)}" for path in failed)
        )
    write_tsv(table, rows, COLUMNS)


def _disown(table: Path, specs: Iterable[str]) -> None:
    """Delete the tables of other packs that list one of these cells, which they do not hold any more.

    Another grid cuts its packs otherwise. Were it to come back, its old tables would say that cells are
    trained which have since been trained with other settings.
    """
    mine = set(specs)
    for other in table.parent.glob("*.tsv"):
        with suppress(UserError):  # another pack's job has just deleted it
            if other.name != table.name and not mine.isdisjoint(row.get("cell") for row in read_tsv(other)):
                other.unlink(missing_ok=True)


def _train(
    spec: Mapping[str, Any],
    shared: Shared,
    state: Path,
    checkpoint_seconds: float,
    began: float,
    choice: Choice | None,
) -> str | None:
    """Train one cell; return its outcome, None if it failed."""
    try:
        with lock(state):
            trained = finetune(spec, shared, state, checkpoint_seconds, began, choice)
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        note_failure(state, str(error))
        return None
    except Exception as error:
        traceback.print_exc()
        note_failure(state, f"{spec['cell']}: {type(error).__name__}: {error}")
        if shared.device.type == "cuda":  # after an error of CUDA, later ones cannot be told from its echo
            raise UserError(
                f"{spec['cell']} failed on the GPU, see above; the cells before it are kept"
            ) from error
        return None
    finally:
        gc.collect()
        if shared.device.type == "cuda":
            with suppress(RuntimeError):  # the echo of a failed kernel, which has been told
                torch.cuda.empty_cache()
    forget_failure(state)
    return TRAINED if trained else KEPT
