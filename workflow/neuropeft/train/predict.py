"""Predict one cohort with all cells that share a base: the network and the volumes are loaded once."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from neuropeft.cohorts.splits import TEST, VALIDATION, ZERO_SHOT
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.models.checkpoints import read_tensors
from neuropeft.peft.adapt import load_delta
from neuropeft.prediction_columns import COLUMNS, prior_columns, score_columns
from neuropeft.progress import track
from neuropeft.store import open_store
from neuropeft.train.data import load_volumes, pick_device
from neuropeft.train.finetune import all_outputs, make_model
from neuropeft.train.labels import seed_of, stored_sessions, with_sessions
from neuropeft.train.losses import scores
from neuropeft.train.memory import BatchSize

Rows = Sequence[Mapping[str, Any]]


def predict(
    deltas: Sequence[str | Path],
    encoder_path: str | Path | None,
    store_dir: str | Path,
    subjects: Sequence[str | Path],
    out_tsv: str | Path,
    device: str | None = None,
) -> None:
    """Write the predictions of every delta, a row per scan.

    Args:
        deltas: Files that `finetune` wrote, of cells that differ in fraction and seed alone.
        encoder_path: The pretrained encoder they started from; None if they started from random weights.
        store_dir: Store of the cohort.
        subjects: Who is predicted: the split of each seed (`seed-<seed>.tsv`), of which validation and test
            sides are; or one table of labels of a zero-shot cohort, of which everybody is.
        out_tsv: The table to write: fraction, seed, split, scan_id, subject, session, y and score (a
            probability, or a value in the target's unit); with more than two classes score_0, score_1, ...
            and prior_0, prior_1, ..., how frequent a class was in training.
        device: As torch names it; the GPU if there is one.

    Raises:
        UserError: A delta belongs to another base, or a delta's seed has no split.
    """
    where = pick_device(device)
    store = open_store(store_dir)
    wanted = _wanted(subjects, store_dir)
    scans = sorted({row["scan_id"] for rows in wanted.values() for row in rows})
    volumes = load_volumes(store.volumes, [store.index_of(scan) for scan in scans], where)
    places = {scan: place for place, scan in enumerate(scans)}
    model, base = None, None
    at_once: BatchSize | None = None
    table: list[dict[str, Any]] = []
    for path in track(deltas, len(deltas), "predicting"):
        state, metadata = read_tensors(path)
        spec = json.loads(metadata["spec"])
        if model is None:
            model, base = make_model(spec, encoder_path).to(where).eval(), _base(spec)
        if _base(spec) != base:
            raise UserError(
                f"{path} has another task, backbone or method than {deltas[0]}; predict them apart"
            )
        load_delta(model, state)
        training = spec["training"]
        at_once = at_once or BatchSize(int(training["batch_size"]))
        rows = _rows_of(wanted, spec["seed"], path)
        index = torch.tensor([places[row["scan_id"]] for row in rows], device=where)
        with torch.inference_mode():
            outputs = all_outputs(model, volumes, index, training["mixed_precision"], at_once)
        offset, scale = json.loads(metadata["offset"]), float(metadata["scale"])
        numbers = scores(spec["task"], outputs, offset, scale)
        cell = {"fraction": spec["fraction"], "seed": spec["seed"]}
        kind, classes = spec["task"]["kind"], numbers.shape[1]
        names, priors = score_columns(kind, classes), prior_columns(kind, classes)
        prior = _texts(priors, [math.exp(value) for value in offset] if priors else [])
        table += [
            {**row, **cell, **_texts(names, score), **prior}
            for row, score in zip(rows, numbers.tolist(), strict=True)
        ]
    write_tsv(out_tsv, table, [*COLUMNS, *names, *priors])


def _wanted(paths: Sequence[str | Path], store_dir: str | Path) -> dict[int | None, Rows]:
    """Return the rows to predict for each seed; under None, those of a zero-shot cohort, for all seeds."""
    sessions = stored_sessions(store_dir)
    wanted: dict[int | None, Rows] = {}
    for path in map(Path, paths):
        rows = with_sessions(read_tsv(path), sessions)
        is_split = bool(rows) and "side" in rows[0]
        if is_split:
            rows = [{**row, "split": row["side"]} for row in rows if row["side"] in (VALIDATION, TEST)]
        else:
            rows = [{**row, "split": ZERO_SHOT} for row in rows]
        if not rows:
            raise UserError(
                f"no scan of {path} that is to be predicted is in the store {store_dir}; check both"
            )
        wanted[seed_of(path) if is_split else None] = rows
    return wanted


def _rows_of(wanted: Mapping[int | None, Rows], seed: int, delta: str | Path) -> Rows:
    rows = wanted.get(None, wanted.get(seed))
    if rows is None:
        raise UserError(
            f"{delta} was trained with seed {seed}, of which no split is given; add seed-{seed}.tsv"
        )
    return rows


def _base(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: spec[key] for key in ("task", "backbone", "method")}


def _texts(names: Sequence[str], values: Sequence[float]) -> dict[str, str]:
    return {name: f"{value:.7g}" for name, value in zip(names, values, strict=True)}
