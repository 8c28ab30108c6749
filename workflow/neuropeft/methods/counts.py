"""Trainable parameters: of a network, and of every row of the paper's Table 1."""

import csv
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.heads import Predictor
from neuropeft.methods.adapt import adapt, delta_state

OUTPUTS = 2  # the paper's classification head
COLUMNS = ("backbone", "method", "encoder", "head", "total", "as_published", "published", "contains")
BACKBONES: dict[str, Mapping[str, Any]] = {
    "vit_b": {"kind": "vit", "width": 768, "depth": 12, "heads": 12},
    "vit_s": {"kind": "vit", "width": 384, "depth": 6, "heads": 8},
    "densenet121": {"kind": "densenet121"},
}
METHODS: dict[str, Mapping[str, Any]] = {
    "scratch": {"kind": "scratch"},
    "full": {"kind": "full"},
    "attention": {"kind": "attention"},
    "lora": {"kind": "lora", "r": 32, "alpha": 32.0, "targets": ["q", "v"], "dropout": 0.0},
    "layernorm": {"kind": "layernorm"},
}
# A layer of MeLo's LoRA code (30 * classes -> classes) that is created after freezing and never used, so it
# is counted as trainable but cannot train.
UNUSED_LAYER = 30 * OUTPUTS * OUTPUTS + OUTPUTS


class Counts(NamedTuple):
    """Numbers of trainable parameters."""

    encoder: int
    head: int
    total: int


def count(model: Predictor) -> Counts:
    """Return how many parameters of an adapted `Predictor` are trained, by part and in total."""
    encoder = sum(value.numel() for value in model.backbone.parameters() if value.requires_grad)
    head = sum(value.numel() for value in model.head.parameters() if value.requires_grad)
    return Counts(encoder, head, encoder + head)


def stored(model: Predictor) -> int:
    """Return how many numbers the delta of an adapted `Predictor` holds: see `adapt.delta_state`."""
    return sum(value.numel() for value in delta_state(model).values())


def attached(model: Predictor) -> dict[str, int]:
    """Return what the method of an adapted `Predictor` attached to.

    Returns:
        `modules`, those of the backbone in which a tensor is trained or was put in, and `tensors`, how many
        are trained.
    """
    trained = sum(value.requires_grad for value in model.backbone.parameters())
    return {"modules": len(model.touched), "tensors": trained}


def table1() -> list[dict[str, str | int]]:
    """Return the rows of Table 1 (Dhinagar et al. 2024) with the keys `COLUMNS`, then DenseNet121's.

    `published` is the printed number and `as_published` ours when put together as the row's `contains` tells:
    the paper includes the head in some rows and not in others. Networks are built without memory, on the meta
    device.
    """
    text = (files("neuropeft") / "publish" / "reference" / "dhinagar2024_table1.csv").read_text(
        encoding="utf-8"
    )
    rows: list[dict[str, str | int]] = []
    for row in csv.DictReader(text.splitlines()):
        with torch.device("meta"):
            model = build_predictor(BACKBONES[row["backbone"]], OUTPUTS)
            adapt(model, METHODS[row["method"]], torch.default_generator)
        counts = count(model)
        parts = {"encoder": counts.encoder, "head": counts.head, "unused": UNUSED_LAYER}
        as_published = sum(parts[part] for part in row["parts"].split("+"))
        published = int(row["published"]) if row["published"].isdigit() else row["published"]
        values = {**row, **counts._asdict(), "as_published": as_published, "published": published}
        rows.append({column: values[column] for column in COLUMNS})
    return rows
