"""What a training is made from: its identity, part by part, each by its content and none by its time.

Jobs write it beside what they have trained and into the deltas. The workflow, which asks whenever it starts,
compares it with what there is by then; nothing heavy is imported for that.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropeft import backbones, methods, numerics, pretraining, tasks
from neuropeft.cohorts.splits import held_out_subjects, read_split
from neuropeft.errors import UserError
from neuropeft.files import read_tsv
from neuropeft.records import digest
from neuropeft.subsets import Subset
from neuropeft.train.labels import read_sides
from neuropeft.train.seeds import derive_seed

if TYPE_CHECKING:
    from neuropeft.tasks.base import TaskKind

Row = Mapping[str, str]


def cell_sources(
    spec: Mapping[str, Any],
    split: Path,
    scans: Path,
    encoder: str | None,
    choice: Mapping[str, float] | None,
) -> dict[str, str]:
    """Return what a cell is made from.

    `scans` is scans.tsv of its training cohort's store; `encoder` the SHA-256 of what it starts from, None of
    random weights; `choice` is what a search has chosen.

    Raises:
        UserError: the split or the store cannot be read, or do not belong together.
    """
    return {
        **settings_and_code(spec),
        **data_sources(split, scans, Subset.parse(spec["subset"]), kind_of(spec)),
        "encoder": encoder or "",
        "choice": choice_source(choice),
    }


def settings_and_code(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of a cell's settings, and of the code that trains it: the kinds it names, no others."""
    return {"settings": digest(dict(spec)), "code": numerics.version("train.finetune", *_kinds(spec))}


def _kinds(spec: Mapping[str, Any], predicts: bool = False) -> tuple[str, ...]:
    return (
        backbones.module_of(spec["backbone"]["kind"]),
        *methods.modules_of(spec["method"]),
        *tasks.modules_of(spec["task"], predicts),
    )


def kind_of(spec: Mapping[str, Any]) -> "TaskKind":
    """Return the kind of a cell's task."""
    return tasks.of_spec(spec["task"])


def data_sources(split: Path, scans: Path, subset: Subset, kind: "TaskKind") -> dict[str, str]:
    """Return digests of who trains and validates, with their targets, and of their volumes."""
    return _data(split, _time(split), scans, _time(scans), subset, kind)


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give an existing file") from error


@cache  # once for all methods and starts
def _data(
    split: Path, _split_time: int, scans: Path, scans_time: int, subset: Subset, kind: "TaskKind"
) -> dict[str, str]:
    stored = stored_rows(scans, scans_time)
    sides = read_sides(split, subset, kind, {scan: row["session"] for scan, row in stored.items()})
    both = (sides.train, sides.validation)
    found = {
        "split": digest([[[row["scan_id"], row["y"]] for row in side] for side in both] + [sides.whole]),
        "volumes": digest([[stored[row["scan_id"]]["sha1"] for row in side] for side in both]),
    }
    if kind.label_maps:
        found["labels"] = digest([[stored[row["y"]]["label_sha1"] for row in side] for side in both])
    return found


@cache
def stored_rows(scans: Path, _scans_time: int) -> dict[str, Row]:
    """Return the rows of a store's scans.tsv by scan, read again when its time has changed."""
    return {row["scan_id"]: row for row in read_tsv(scans)}


def choice_source(choice: Mapping[str, float] | None) -> str:
    """Return the digest of what a search has chosen; empty without a search."""
    return "" if choice is None else digest(dict(choice))


def trial_sources(search: Mapping[str, Any], cells: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return what trials are made from: what is tried, and their cells, {path: what each is made from}."""
    return {"search": digest(dict(search)), "code": numerics.version("train.search"), "cells": digest(cells)}


def choice_sources(search: Mapping[str, Any], trials: Sequence[str]) -> dict[str, str]:
    """Return what a choice is made from: what was tried, and the SHA-256 of each table of trials."""
    code = numerics.version("train.choices")
    return {"search": digest(dict(search)), "code": code, "trials": digest(sorted(trials))}


def prediction_sources(
    spec: Mapping[str, Any],
    deltas: Mapping[str, str],
    scans: str,
    subjects: Sequence[str],
    told: str = "",
) -> dict[str, Any]:
    """Return what the predictions of a cohort are made from.

    `deltas` are the SHA-256 of each cell's delta by `cell_key`; `scans` and `subjects` those of the store's
    scans.tsv and of the tables that say who is predicted. `told` is what predictions alone depend on.
    """
    code = numerics.version("train.predict", *_kinds(spec, predicts=True))
    found = {"code": code, "deltas": dict(deltas), "volumes": scans, "subjects": sorted(subjects)}
    return found | ({"told": told} if told else {})


def cell_key(spec: Mapping[str, Any]) -> str:
    """Return what tells a cell from those that it is predicted together with."""
    return f"{spec['subset']}/{spec['seed']}/{spec['fold']}"


def imported_sources(backbone: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """Return what imported weights are made from: settings of the backbone, and SHA-256 of the file."""
    kinds = pretraining.module_of("imported"), backbones.module_of(backbone["kind"])
    code = numerics.version("backbones.checkpoints", *kinds)
    return {"code": code, "backbone": digest(dict(backbone)), "weights": weights}


def pretraining_scans(
    spec: Mapping[str, Any], scans: Path, held_out_splits: Sequence[str | Path]
) -> tuple[list[Row], list[Row]]:
    """Return the rows of the store to pretrain on and to validate on; whole subjects on either side."""
    tested = held_out_subjects(map(read_split, held_out_splits))
    rows: list[Row] = [row for row in read_tsv(scans) if row["subject"] not in tested]
    subjects = sorted({row["subject"] for row in rows})
    number = max(1, round(spec["validation_share"] * len(subjects)))
    if len(subjects) <= number:
        raise UserError(
            f"{scans} has {len(subjects)} subjects that are not tested on, too few to pretrain; pretrain on "
            "another cohort"
        )
    random.Random(derive_seed(int(spec["seed"]), "validation")).shuffle(subjects)
    validating = set(subjects[:number])
    train = [row for row in rows if row["subject"] not in validating]
    return train, [row for row in rows if row["subject"] in validating]


def pretraining_sources(
    spec: Mapping[str, Any], train: Sequence[Row], validation: Sequence[Row], start: str | None
) -> dict[str, str]:
    """Return what a pretraining is made from.

    `train` and `validation` are rows of the store; `start` is the SHA-256 of the encoder that it goes on
    from, None of random weights.
    """
    from neuropeft.cohorts.synthetic import ANATOMY_FACTORS  # NumPy, which no job shall import to start

    # A synthetic cohort's rows hold what it is pretrained to read.
    rows = [
        [[row["sha1"], *(row[name] for name in ANATOMY_FACTORS if name in row)] for row in side]
        for side in (train, validation)
    ]
    return {
        "settings": digest(dict(spec)),
        "code": numerics.version("train.pretrain", pretraining.module_of(spec["kind"])),
        "volumes": digest(rows),
        "encoder": start or "",
    }


def differing(made_from: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the parts that something was made from otherwise than is expected; an absent one is unknown."""
    return [part for part, value in expected.items() if made_from.get(part) != value]
