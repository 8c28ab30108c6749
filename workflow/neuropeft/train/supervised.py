"""What the loop trains of a cell: the losses of labelled scans, and their validation."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neuropeft.backbones.base import BATCH_NORMS, Backbone
from neuropeft.backbones.heads import Head, Predictor
from neuropeft.methods.adapt import delta_state, load_delta, method_of, trunk_layers
from neuropeft.tasks.base import Array, Objective, TaskKind
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.data import Volumes, as_input, pass_order
from neuropeft.train.gradients import summed_gradients
from neuropeft.train.graphs import Recorded
from neuropeft.train.labels import Sides, subject_weights
from neuropeft.train.learner import Batch, Learner
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.sources import kind_of

if TYPE_CHECKING:
    from neuropeft.train.finetune import Shared
    from neuropeft.train.predict import Shown

MEASURED = 512  # training scans at most that tell the statistics of features before a validation
Network = Callable[[Tensor], Tensor]


def forward_outputs(model: Network, volumes: Tensor, mixed_precision: bool) -> Tensor:
    """Return the outputs [B, outputs] in float32, computed in bfloat16 on a GPU if `mixed_precision`."""
    on_gpu = volumes.device.type == "cuda"
    enabled = mixed_precision and on_gpu
    # No cache: a pass uses each weight once, and a recorded one must not find its casts there.
    with torch.autocast(volumes.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
        outputs = model(volumes)
    return outputs.float()


def all_outputs(
    model: Network, volumes: Volumes, rows: Tensor, mixed_precision: bool, size: BatchSize
) -> Tensor:
    """Return the outputs [n, ...] for the volumes `rows` [n], unchanged by augmentation, on the CPU.

    Raises:
        UserError: The memory of the GPU does not suffice for one scan.
    """

    def outputs(batch: Tensor) -> Tensor:
        return forward_outputs(model, volumes.batch(batch), mixed_precision)

    return torch.cat(in_batches(outputs, rows, size)).cpu()


class _Above(nn.Module):
    """A network above its trunk: what the trunk gives of scans -> tokens, or outputs."""

    def __init__(self, model: Predictor, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def tokens(self, x: Tensor) -> Tensor:
        return self.model.backbone.above(x, self.layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.outputs(self.tokens(x))


def _held(
    model: Predictor, layers: int, volumes: Volumes, rows: Tensor, mixed_precision: bool, size: BatchSize
) -> tuple[_Above, Volumes]:
    """Return a network above its first layers, and what these make of the volumes `rows` [n], in order."""
    with torch.no_grad():
        trunk = partial(model.eval().backbone.below, layers=layers)
        held = all_outputs(trunk, volumes, rows, mixed_precision, size)
    return _Above(model, layers), Volumes(held.to(volumes.device), volumes.device)


def _training_pass(network: nn.Module, backbone: Backbone, training: Mapping[str, Any]) -> Network:
    """Return the pass of a training's batches through `network`: compiled, recorded or as it is."""
    compiled = torch.compile(network) if training["compile"] else network
    forward = partial(forward_outputs, compiled, mixed_precision=training["mixed_precision"])
    # What is compiled launches few kernels anyway.
    if training["compile"] or not backbone.recordable or _has_batch_norms(backbone):
        return forward
    return Recorded(network, forward, int(training["batch_size"]))


def _has_batch_norms(backbone: Backbone) -> bool:
    norms = tuple(BATCH_NORMS.values())
    return any(isinstance(module, norms) for module in backbone.modules())


def held_layers(training: Mapping[str, Any], model: Predictor) -> int:
    """Return how many layers of an adapted network, from the first, each scan passes through only once.

    Where scans are not changed at random, these are all layers below what is trained.
    """
    return 0 if read_augmentation(training["augment"]).any or not model.by_tokens else trunk_layers(model)


def learner(
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    shared: "Shared",
    sides: Sides,
    steps: int,
) -> Learner:
    """Return what the loop trains of a cell.

    Where scans are not changed at random, layers below all that is trained give the same in every step: each
    scan passes through them once, before the first.

    `model` is on the device of the volumes, and `steps` are the most.
    """
    volumes, places, head = shared.volumes, shared.places, model.head
    assert isinstance(head, Head), "a kind with a decoder names another module"
    training, seed, device = spec["training"], int(spec["seed"]), volumes.device
    changes = read_augmentation(training["augment"])
    mixed_precision, at_once = training["mixed_precision"], BatchSize(int(training["batch_size"]))
    both, count = [*sides.train, *sides.validation], len(sides.train)
    # Where the volumes are, so that finding them does not wait for the device.
    rows = torch.tensor([places[row["scan_id"]] for row in both], device=volumes.data.device)
    kind = kind_of(spec)
    known = kind.array(row["y"] for row in both)
    targets = torch.from_numpy(known).float()  # [scans, ...]
    weights = torch.tensor(subject_weights(sides.train), device=device)
    train_targets, validation_targets = targets.to(device), targets[count:]

    network: Predictor | _Above = model
    tokens_of: Network = model.backbone.tokens
    if layers := held_layers(training, model):
        network, volumes = _held(model, layers, volumes, rows, mixed_precision, at_once)
        rows, tokens_of = torch.arange(len(rows), device=device), network.tokens
    forward = _training_pass(network, model.backbone, training)
    batches = TrainingBatches(volumes, rows[:count], int(training["batch_size"]), seed)

    def loss(batch: Batch) -> Tensor:
        changed = augment(as_input(batch.volumes), changes, seed, batch.step, batch.first, batch.total)
        here = batch.rows.to(device, non_blocking=True)
        return (weights[here] * goal.loss(forward(changed), train_targets[here])).sum()

    def unchanged_loss(some: Tensor) -> Tensor:
        outputs, here = forward_outputs(network, volumes.batch(rows[some]), mixed_precision), some.to(device)
        return (weights[here] * goal.loss(outputs, train_targets[here])).sum()

    first = pass_order(count, seed, 0)[:MEASURED]
    measured = rows[first.to(rows.device)]

    def measure() -> Tensor:
        # As training sees them: by their running statistics, which lag behind, batch norms give others.
        model.train(_has_batch_norms(model.backbone))
        with torch.inference_mode():
            tokens = all_outputs(tokens_of, volumes, measured, mixed_precision, at_once)
        head.measure(tokens)
        model.eval()
        return tokens

    def validate() -> dict[str, float]:
        if training["feature_norm"] == "refreshed":
            measure()
        # By the network as predictions use it, not as it is compiled.
        outputs = all_outputs(network, volumes, rows[count:], mixed_precision, at_once)
        return {
            "val_loss": float(goal.loss(outputs, validation_targets).mean()),
            "val_metric": _watched(kind, goal, outputs, known[count:]),
        }

    tokens = measure()
    if training["head_start"] == "probe":
        from neuropeft.train.probe_start import start_from_probe  # scikit-learn takes seconds to import

        of_first = [sides.train[place] for place in first.tolist()]
        subjects = [row["subject"] for row in of_first]
        start_from_probe(head, kind, tokens, kind.array(row["y"] for row in of_first), subjects, goal)
    everyone = torch.arange(count, device=rows.device)
    return with_method(spec, model, batches, loss, validate, unchanged_loss, everyone, at_once, steps)


def with_method(
    spec: Mapping[str, Any],
    model: Predictor,
    batches: TrainingBatches,
    loss: Callable[[Batch], Tensor],
    validate: Callable[[], dict[str, float]],
    unchanged_loss: Callable[[Tensor], Tensor],
    everyone: Tensor,
    at_once: BatchSize,
    steps: int,
) -> Learner:
    """Return the learner of an adapted network, with all that its method has a say in.

    Args:
        spec: What defines the cell.
        model: The adapted network.
        batches: Its training scans.
        loss: Batch -> the weighted loss summed over its scans.
        validate: See `Learner`.
        unchanged_loss: Some of `everyone` -> the same of training scans as they are, without augmentation.
        everyone: What `unchanged_loss` calls the training scans, [n].
        at_once: How many scans pass through at a time.
        steps: The most steps.
    """
    method, seed = method_of(spec["method"]), int(spec["seed"])
    if method.wants_gradients(spec["method"]):
        found = summed_gradients(model, unchanged_loss, everyone, at_once)
        method.select(model.backbone, spec["method"], found)

    def penalised(batch: Batch) -> tuple[Tensor, int]:
        total, penalty = loss(batch), method.penalty(model.backbone, spec["method"])
        return total if penalty is None else total + len(batch.rows) * penalty, len(batch.rows)

    return Learner(
        model,
        batches.get,
        penalised,
        validate,
        lambda: delta_state(model),
        lambda state: load_delta(model, state),
        lambda step: method.before_step(model.backbone, spec["method"], step, seed),
        lambda step: method.after_step(model.backbone, spec["method"], step, steps),
    )


def predicted(
    model: Predictor, spec: Mapping[str, Any], metadata: Mapping[str, str], shown: "Shown"
) -> list[list[float]]:
    """Return the scores of scans, as their kind of task names its columns.

    `model` has the delta of a cell, of which `metadata` is.
    """
    mixed_precision = spec["training"]["mixed_precision"]
    with torch.inference_mode():
        outputs = all_outputs(model, shown.volumes, shown.places, mixed_precision, shown.at_once)
    offset, scale = json.loads(metadata["offset"]), float(metadata["scale"])
    scores: list[list[float]] = kind_of(spec).scores(outputs, offset, scale).tolist()
    return scores


def _watched(kind: TaskKind, goal: Objective, outputs: Tensor, targets: Array) -> float:
    """Return the first metric of outputs [n, outputs], which a person wants to watch."""
    score = kind.scores(outputs, goal.offset, goal.scale).double().numpy()  # [n, columns]
    score = score if score.shape[1] > 1 else score[:, 0]
    metric = kind.metrics[0]
    return float(metric.value(targets, score, np.full(len(targets), np.nan), None))
