"""Tiny simulated stores, splits and settings for the tests of training."""

import csv
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from neuropeft.files import read_tsv, write_tsv
from scans import save

EDGE = 12
BACKBONE = {
    "kind": "vit",
    "width": 24,
    "depth": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "patch_size": 4,
    "image_size": EDGE,
}
DECODER = {"width": 24, "depth": 1, "heads": 2}
# Kind of task -> its size, and the target that a table has of a scan with features a and b: see `test_tasks`.
TASKS: dict[str, tuple[int, Callable[[float, float], Any]]] = {
    "binary": (2, lambda a, b: int(a > 0)),
    "multiclass": (3, lambda a, b: int(a > 0) + int(a > 0.7)),
    "regression": (0, lambda a, b: 60 + 10 * a),
    "multilabel": (
        2,
        lambda a, b: f"{int(a > 0)}|{'n/a' if abs(b) > 1 else '1?' if b > 0.9 else int(b > 0.5)}",
    ),
}
# Kinds without linear models, whose targets are label maps or texts -> what their settings tell them.
DENSE = {
    "generation": "",
    "segmentation": json.dumps(
        {"regions": {"front": [1], "back": [2]}, "nested": False, "tolerance_mm": 1.0}
    ),
}
LORA = {"kind": "lora", "r": 2, "alpha": 2.0, "targets": ["q", "v"], "dropout": 0.0}
WORKFLOW = Path(__file__).parents[1] / "workflow"


def make_store(folder: Path, scans: int = 24, sessions: int = 1, edge: int = EDGE, seed: int = 0) -> Path:
    """Write simulated volumes whose mean brightness in the left half follows the subject's number."""
    rng = np.random.default_rng(seed)
    volumes = rng.normal(size=(scans, edge, edge, edge))
    subjects = np.arange(scans) // sessions
    volumes[:, : edge // 2] += 2 * ((subjects % 2) - 0.5)[:, None, None, None]
    volumes[::3, :, :, edge // 2 :] = -1  # background, of which some scans have more than others
    folder.mkdir(parents=True, exist_ok=True)
    stored = volumes.astype(np.float16)
    np.save(folder / "volumes.npy", stored[:, None])
    rows = [
        {
            "row": i,
            "scan_id": f"sub-{subject:03d}_ses-{i % sessions + 1}",
            "subject": f"sub-{subject:03d}",
            "session": f"ses-{i % sessions + 1}",
            "sha1": hashlib.sha1(stored[i].tobytes()).hexdigest(),
        }
        for i, subject in enumerate(subjects)
    ]
    write_tsv(folder / "scans.tsv", rows, ["row", "scan_id", "subject", "session", "sha1"])
    return folder


def add_label_maps(store: Path) -> Path:
    """Give the scans of a store label maps, on a grid of their own, of two boxes that they show."""
    rows, rng = read_tsv(store / "scans.tsv"), np.random.default_rng(0)
    volumes = np.load(store / "volumes.npy")
    edge = volumes.shape[-1]
    labels = np.zeros((len(rows), *volumes.shape[2:]), np.uint8)
    for row, volume, of_scan in zip(rows, volumes, labels, strict=True):
        corner = rng.integers(1, edge // 2 - 1, 3)
        box = tuple(slice(one, one + edge // 2) for one in corner)
        of_scan[box] = 1
        of_scan[box[0], box[1], corner[2] : corner[2] + edge // 4] = 2
        volume[0] = 0.3 * volume[0] + 3 * of_scan
        row["label_sha1"] = hashlib.sha1(of_scan.tobytes()).hexdigest()
        row["input"], affine = "volume", np.diag([2.0, 2.0, 2.0, 1.0])
        for column, data in (("preproc", volume[0].astype(np.float32)), ("dseg", of_scan)):
            row[column] = str(store / f"{row['scan_id']}_{column}.nii")
            save(Path(row[column]), nib.Nifti1Image(data, affine))
    np.save(store / "volumes.npy", volumes)
    np.save(store / "labels.npy", labels)
    write_tsv(store / "scans.tsv", rows, list(rows[0]))
    return store


def add_anatomy(store: Path, seed: int = 0) -> Path:
    """Make a store synthetic: each patch shows how much of each tissue it holds, by a texture of its own."""
    from neuropeft.cohorts.synthetic import ANATOMY_FACTORS, MAPS

    rows, rng = read_tsv(store / "scans.tsv"), np.random.default_rng(seed)
    tissue = rng.uniform(0, 1, size=(len(rows), 3, 3, 3, 3))
    tissue[:, :, 0, 0, 0] = 0.2  # a place that is alike in all brains
    moved = 3 * tissue[:, ::-1]  # displacements, which follow from tissue here
    textures = rng.normal(size=(3, 4, 4, 4))
    # [scans, 3, 3, 3, 4, 4, 4] -> [scans, 12, 12, 12]
    painted = np.einsum("ntxyz,tabc->nxaybzc", tissue, textures).reshape(len(rows), 12, 12, 12)
    np.save(store / "volumes.npy", painted[:, None].astype(np.float16))
    for name, values in zip(MAPS, (tissue, moved), strict=True):
        np.save(store / name, values.astype(np.float16))
    mean = tissue.mean(axis=(2, 3, 4))
    known = [
        {**row, **{name: mean[i, j % 3] for j, name in enumerate(ANATOMY_FACTORS)}}
        for i, row in enumerate(rows)
    ]
    write_tsv(store / "scans.tsv", known, list(known[0]))
    return store


def make_split(
    path: Path, store: Path, classes: int = 2, regression: bool = False, validation: int = 6, test: int = 2
) -> Path:
    """Write a split: the last subjects are tested on, those before them validate, the rest train."""
    with (store / "scans.tsv").open() as stream:
        scans = list(csv.DictReader(stream, delimiter="\t"))
    subjects = list(dict.fromkeys(row["subject"] for row in scans))
    training = len(subjects) - validation - test
    rows = []
    for row in scans:
        number = subjects.index(row["subject"])
        side = "train" if number < training else "val" if number < training + validation else "test"
        order = {"train": number, "val": number - training}.get(side)
        y = 60 + 10.5 * (number % 2) + 0.1 * number if regression else number % classes
        rows.append({**row, "side": side, "order": order, "y": y})
    write_tsv(path, rows, ["scan_id", "subject", "side", "order", "y"])
    return path


def task(kind: str) -> dict[str, Any]:
    """Return what defines a task, as `config.tasks` writes it."""
    if kind in DENSE:
        return {"name": "simulated", "kind": kind, "size": 2, "told": DENSE[kind]}
    return {"name": "simulated", "kind": kind, "size": TASKS[kind][0]}


def cell(kind: str = "binary", method: dict[str, Any] = LORA, **changes: Any) -> dict[str, Any]:
    """Return the settings of a cell; `changes` of training are merged in."""
    training = {
        "epochs": 3,
        "batch_size": 5,
        "warmup_epochs": 1,
        "patience": 10,
        "min_steps": 0,
        "min_validation": 1,
        "pool": "mean",
        "feature_norm": "fixed",
        "head_start": "random",
        "drop_path": 0.0,
        "clip": 1.0,
        "augment": {"flip": True, "rotate_deg": 5, "translate_voxels": 1, "intensity": 0.1},
        "mixed_precision": True,
        "compile": False,
    } | changes.pop("training", {})
    spec = {
        "cell": f"simulated/tiny/none/{method['kind']}/fraction-100/0",
        "task": task(kind),
        "backbone": BACKBONE,
        "method": {"lr": 3e-3, "head_lr": None, "weight_decay": 1e-4, **method},
        "training": training,
        "subset": "fraction-100",
        "seed": 0,
        "fold": 0,
        "shuffle_labels": False,
    }
    return spec | changes


def pretraining(**changes: Any) -> dict[str, Any]:
    """Return the settings of a pretraining."""
    spec = {
        "kind": "mae",
        "backbone": BACKBONE,
        "decoder": DECODER,
        "mask_ratio": 0.75,
        "mask": "all",
        "steps": 9,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup_steps": 3,
        "weight_decay": 0.05,
        "betas": [0.9, 0.95],
        "clip": 1.0,
        "augment": {"flip": True, "translate_voxels": 1, "noise": 0.1},
        "seed": 0,
        "validation_share": 0.2,
        "normalize_targets": True,
        "mixed_precision": True,
        "compile": False,
    }
    return spec | changes


def finetune(
    spec: dict[str, Any],
    store: Path,
    split: Path,
    encoder: Path | None,
    out: Path,
    state: Path,
    checkpoint_seconds: float = 0,
) -> None:
    """Train one cell alone, on the CPU, and move what comes out to `out`."""
    from neuropeft.train.finetune import finetune as train
    from neuropeft.train.finetune import open_shared
    from neuropeft.train.state import FINISHED

    train(spec, open_shared([spec], store, [split], encoder, "cpu"), state, checkpoint_seconds)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(Path(state) / FINISHED, out)


def given_to_fit(trainer: str, train: Callable[..., None], *arguments: Any, **named: Any) -> dict[str, Any]:
    """Return what `train` of neuropeft.train.`trainer` hands to the loop, by name; nothing is trained."""
    import pytest

    module = import_module(f"neuropeft.train.{trainer}")
    signature, seen = inspect.signature(module.fit), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", lambda *a, **k: seen.append(signature.bind(*a, **k)) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*arguments, **named)
    seen[0].apply_defaults()
    return dict(seen[0].arguments)


def passed(learner: Any, rows: Any, step: int = 0, parts: int = 1) -> tuple[float, dict[str, Any]]:
    """Return the mean loss of a step's batch, and its gradients by name, gone through in so many parts."""
    from neuropeft.train.learner import Batch
    from neuropeft.train.ranks import ALONE

    volumes, network = learner.volumes(rows, step), learner.module
    network.zero_grad()
    sums = []
    for place in (ALONE.share(len(rows), part, parts) for part in range(parts)):
        loss, weight = learner.loss(Batch(rows[place], volumes[place], step, place.start, len(rows)))
        loss.backward()
        sums.append((float(loss.detach()), float(weight)))
    loss, weight = map(sum, zip(*sums, strict=True))
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return loss / weight, {name: gradient / weight for name, gradient in gradients.items()}


def read_history(folder: Path) -> list[dict[str, str]]:
    """Return history.csv without the seconds, which no two runs share."""
    with (folder / "history.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def read_cost(folder: Path) -> dict[str, Any]:
    """Return cost.json."""
    return json.loads((folder / "cost.json").read_text())


def python(
    code: str,
    *launcher: str,
    arguments: Sequence[object] = (),
    around: Sequence[str] = (),
    stdin: int | None = None,
    **environment: str,
) -> "subprocess.Popen[str]":
    """Start Python, as an argument of `around`, on `code`: after `launcher`, before `arguments`."""
    path = os.pathsep.join([str(WORKFLOW), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [*around, sys.executable, *launcher, *([] if launcher else ["-c"]), code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=variables, text=True, stdin=stdin, stdout=pipe, stderr=pipe)
