"""Who an exported cell was trained on, validated by and tested on: rows, stored predictions, features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from neuropeft import layout
from neuropeft.backbones.heads import Predictor
from neuropeft.cohorts.splits import first_rows
from neuropeft.errors import UserError
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.export.choose import Chosen
from neuropeft.export.model import outputs_and_features
from neuropeft.files import read_tsv
from neuropeft.store import Store, open_store
from neuropeft.tasks.base import Array, Objective, Run, TaskKind
from neuropeft.train.data import load_volumes
from neuropeft.train.labels import Sides, subject_weights
from neuropeft.train.memory import BatchSize
from neuropeft.train.sources import kind_of
from neuropeft.train.supervised import MEASURED, all_outputs

AT_ONCE = 8  # scans


@dataclass(frozen=True)
class Side:
    """Subjects that the exported cell was tested on or validated by: their stored predictions and scans."""

    run: Run
    scans: list[str]
    store: Store


@dataclass(frozen=True)
class Learnt:
    """What an exported cell has learnt from: its spec, see `grid.cell_spec`, the rows of its split, scans."""

    spec: Mapping[str, Any]
    split: Path
    sides: Sides
    store: Store

    @property
    def scans(self) -> list[str]:
        """The training scans."""
        return [row["scan_id"] for row in self.sides.train]

    @cached_property
    def goal(self) -> Objective:
        """The loss of its cell."""
        kind, rows = kind_of(self.spec), self.sides.train
        return kind.objective(
            kind.array(row["y"] for row in rows), subject_weights(rows), str(self.spec["cell"])
        )


def read_side(results: Path, chosen: Chosen, kind: TaskKind, cohort: str, side: str) -> Side:
    """Return the subjects of a side, or of a zero-shot cohort, with their stored predictions.

    Raises:
        UserError: they are not predicted.
    """
    cell = chosen.cell
    path = layout.PREDICTIONS.at(results, **cell.names, cohort=cohort)
    runs = read_predictions(path, kind) if path.is_file() else {}
    key = RunKey("", cell.subset, cell.seed, side, cell.fold)
    if key not in runs:
        raise UserError(f"{path} lacks the {side} subjects of {cell.path}; run the workflow again")
    own = {"subset": str(cell.subset), "seed": str(cell.seed), "fold": str(cell.fold), "split": side}
    first = first_rows([row for row in read_tsv(path) if own.items() <= row.items()])
    scans = [first[subject]["scan_id"] for subject in runs[key].subjects]
    return Side(runs[key], scans, open_store(layout.STORE.at(results, cohort=cohort)))


def look(
    network: Predictor, kind: TaskKind, store: Store, scans: Sequence[str]
) -> tuple[torch.Tensor, Array]:
    """Return the outputs [n, outputs] and the features [n, f] of the first `MEASURED` scans."""
    rows = [store.index_of(scan) for scan in scans[:MEASURED]]
    volumes = load_volumes(store.volumes, rows, torch.device("cpu"))

    def both(batch: torch.Tensor) -> torch.Tensor:
        return outputs_and_features(network, batch)

    with torch.inference_mode():
        found = all_outputs(both, volumes, torch.arange(len(rows)), False, BatchSize(AT_ONCE))
    return found[:, : kind.outputs], found[:, kind.outputs :].double().numpy()
