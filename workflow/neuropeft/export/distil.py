"""A smaller network that learns to give what an exported one gives (Hinton 2015; Ba & Caruana 2014)."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.export.sides import Learnt
from neuropeft.methods.adapt import parameter_groups
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.checkpoint import StateFolder
from neuropeft.train.data import as_input
from neuropeft.train.finetune import make_model, open_shared, plan_of
from neuropeft.train.labels import subject_weights
from neuropeft.train.learner import Batch
from neuropeft.train.loop import fit
from neuropeft.train.supervised import forward_outputs, learner

# As `scratch` of workflow/configs/ixi.yaml: a student starts from random weights.
METHOD: Mapping[str, Any] = {"kind": "scratch", "lr": 5e-4, "head_lr": 1.5e-4, "weight_decay": 0.05}


def half_width(backbone: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a transformer of half the width with heads as wide as before; None of other backbones.

    Half of ViT-B (768, 12 heads) is the usual ViT-S (384, 6 heads).
    """
    if "heads" not in backbone:
        return None
    heads = max(1, backbone["heads"] // 2)
    return {**backbone, "heads": heads, "width": backbone["width"] // 2 // heads * heads}


def distilled(
    teacher: Predictor, backbone: Mapping[str, Any], learnt: Learnt
) -> tuple[Predictor, dict[str, Any]]:
    """Return a student that was trained to give the teacher's outputs of the training scans.

    Both see the same augmented scans (Beyer 2022), and the loss is the squared difference of their outputs:
    logits of classes, which is Hinton's soft targets where these are soft, and standardised values. It is
    trained as long as the teacher's cell, by the loop of the benchmark; the loss of the true targets on
    validation chooses the epoch.

    The teacher is the exported network, in evaluation mode on the CPU; `learnt` is what it was trained on.

    Returns:
        The student in evaluation mode on the CPU, and what defines it, as `grid.cell_spec` writes it.

    Raises:
        UserError: the student takes other scans than the teacher, or the loss is not finite.
    """
    spec = {**learnt.spec, "backbone": dict(backbone), "method": dict(METHOD)}
    spec["cell"] = f"student of {learnt.spec['cell']}"
    student = make_model(spec, None)
    if student.backbone.takes != teacher.backbone.takes:
        raise UserError(
            f"`--deploy`: a student of kind {backbone['kind']} takes {student.backbone.takes}, but the "
            f"exported network {teacher.backbone.takes}; name a backbone for the same scans"
        )
    shared = open_shared([spec], learnt.store.path, [learnt.split], None)
    device, training, seed = shared.device, spec["training"], int(spec["seed"])
    sides, mixed_precision = learnt.sides, training["mixed_precision"]
    plan = plan_of(spec, sides)
    student, teacher = student.to(device), teacher.to(device)
    changes = read_augmentation(training["augment"])
    weights = torch.tensor(subject_weights(sides.train), device=device)

    def loss(batch: Batch) -> tuple[Tensor, int]:
        scans = augment(as_input(batch.volumes), changes, seed, batch.step, batch.first, batch.total)
        with torch.no_grad():
            wanted = forward_outputs(teacher, scans, mixed_precision)
        missed = (forward_outputs(student, scans, mixed_precision) - wanted).square().mean(dim=1)
        return (weights[batch.rows.to(device)] * missed).sum(), len(batch.rows)

    taught = replace(learner(spec, student, learnt.goal, shared, sides, plan.steps), loss=loss)
    with tempfile.TemporaryDirectory() as folder:  # of checkpoints, of which there are none
        state = StateFolder(Path(folder), "", spec, math.inf)
        fit(taught, parameter_groups(student, METHOD), plan, state, device)
    teacher.to("cpu")
    return student.eval().cpu(), spec
