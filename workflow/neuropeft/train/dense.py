"""What the loop trains of a cell that predicts every voxel, and how its predictions are scored.

Where scans are larger than what the backbone takes, it trains on patches of them, and predicts them whole by
a window that slides over them (as nnU-Net does, Isensee et al. 2021).
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuropeft import layout
from neuropeft.backbones.decoders import DensePredictor
from neuropeft.backbones.heads import Predictor
from neuropeft.inputs import input_kind
from neuropeft.tasks.base import Array, Objective
from neuropeft.tasks.overlap import dice
from neuropeft.tasks.segmentation import Segmentation
from neuropeft.train.augment import augment, read_augmentation
from neuropeft.train.data import as_input, generator
from neuropeft.train.labels import Sides, subject_weights
from neuropeft.train.learner import Batch, Learner
from neuropeft.train.memory import BatchSize, in_batches
from neuropeft.train.prefetch import TrainingBatches
from neuropeft.train.sources import kind_of
from neuropeft.train.supervised import forward_outputs, with_method

if TYPE_CHECKING:
    from neuropeft.train.finetune import Shared
    from neuropeft.train.predict import Shown

OVERLAP = 0.5  # of neighbouring windows
ON_A_REGION = 1 / 3  # share of patches that are centred on a voxel of a region (Isensee et al. 2021)


def learner(
    spec: Mapping[str, Any],
    model: Predictor,
    goal: Objective,
    shared: "Shared",
    sides: Sides,
    steps: int,
) -> Learner:
    """Return what the loop trains of a cell; see `supervised.learner`."""
    volumes, training, seed = shared.volumes, spec["training"], int(spec["seed"])
    changes, kind = read_augmentation(training["augment"]), _kind(spec)
    at_once, device = BatchSize(int(training["batch_size"])), volumes.device
    both, count = [*sides.train, *sides.validation], len(sides.train)
    rows = torch.tensor([shared.places[row["scan_id"]] for row in both], device=volumes.data.device)
    of_labels = torch.tensor([shared.places[row["y"]] for row in both], device=shared.labels.data.device)
    weights = torch.tensor(subject_weights(sides.train), device=device)
    edge = model.backbone.takes.size
    _start_at_shares(model, kind, shared, of_labels[:count], at_once)
    network = torch.compile(model) if training["compile"] else model
    forward = partial(forward_outputs, network, mixed_precision=training["mixed_precision"])
    batches = TrainingBatches(volumes, rows[:count], int(training["batch_size"]), seed)

    def weighted(x: Tensor, labels: Tensor, of: Tensor, step: int, first: int) -> Tensor:
        x, labels = patches(x, labels, edge, seed, step, first)
        return (weights[of.to(device)] * goal.loss(forward(x), labels)).sum()

    def loss(batch: Batch) -> Tensor:
        place = seed, batch.step, batch.first, batch.total
        x = augment(as_input(batch.volumes), changes, *place)
        labels = shared.labels.batch(of_labels[batch.rows.to(of_labels.device)])
        labels = augment(labels[:, None], changes.of_places, *place, mode="nearest")[:, 0]
        return weighted(x, labels, batch.rows, batch.step, batch.first)

    def unchanged_loss(some: Tensor) -> Tensor:
        return weighted(volumes.batch(rows[some]), shared.labels.batch(of_labels[some]), some, 0, 0)

    def checked(some: Tensor) -> Tensor:
        """Return loss and mean Dice of validation scans, [n, 2]."""
        outputs = whole_outputs(model, volumes.batch(rows[some]), training["mixed_precision"])
        labels = shared.labels.batch(of_labels[some])
        found = kind.found(kind.scores(outputs, goal.offset, goal.scale))
        return torch.stack([goal.loss(outputs, labels), dice(found, kind.masks(labels)).mean(1)], dim=1)

    def validate() -> dict[str, float]:
        with torch.inference_mode():
            numbers = torch.cat(in_batches(checked, torch.arange(count, len(both)), at_once)).mean(0)
        return {"val_loss": float(numbers[0]), "val_metric": float(numbers[1])}

    everyone = torch.arange(count)
    return with_method(spec, model, batches, loss, validate, unchanged_loss, everyone, at_once, steps)


def _kind(spec: Mapping[str, Any]) -> Segmentation:
    kind = kind_of(spec)
    assert isinstance(kind, Segmentation), "no other kind names this module"
    return kind


def _start_at_shares(
    model: Predictor, kind: Segmentation, shared: "Shared", rows: Tensor, at_once: BatchSize
) -> None:
    """Have the head start from how often regions are in the label maps `rows` of training scans.

    Without this, hundreds of steps go into learning that most voxels are background (Lin et al. 2017, focal
    loss, section 3.3).
    """
    assert isinstance(model, DensePredictor), "what the kind's decoder builds"

    def shares(some: Tensor) -> Tensor:
        return kind.masks(shared.labels.batch(some)).float().flatten(2).mean(2)  # [n, regions]

    of_scans = torch.cat(in_batches(shares, rows, at_once))
    model.start_at(kind.prior_logits(of_scans.mean(0)))


def patches(x: Tensor, labels: Tensor, edge: int, seed: int, step: int, first: int) -> tuple[Tensor, Tensor]:
    """Cut a patch out of each scan of a batch, some of them around a voxel of a region.

    `x` are scans [B, C, *S] and `labels` their maps [B, *S]; `edge` is in voxels, and `first` the place of
    the first scan in the batch of all processes.

    Returns:
        [B, C, *edge] and [B, *edge].
    """
    room = x.shape[-1] - edge
    if room == 0:
        return x, labels
    cut = []
    for place, (scan, of_scan) in enumerate(zip(x, labels, strict=True)):
        random = generator(torch.device("cpu"), seed, "patch", step, first + place)
        start = torch.randint(room + 1, (of_scan.ndim,), generator=random)
        inside = of_scan.nonzero()
        if torch.rand((), generator=random) < ON_A_REGION and len(inside):
            voxel = inside[int(torch.randint(len(inside), (), generator=random))]
            start = (voxel.cpu() - edge // 2).clamp(0, room)
        where = tuple(slice(one, one + edge) for one in start.tolist())
        cut.append((scan[:, *where], of_scan[where]))
    of_x, of_labels = zip(*cut, strict=True)
    return torch.stack(of_x), torch.stack(of_labels)


def whole_outputs(model: Predictor, x: Tensor, mixed_precision: bool) -> Tensor:
    """Return the logits [B, outputs, *S], float32, of scans [B, C, *S] of any size that holds a window."""
    forward = partial(forward_outputs, model, mixed_precision=mixed_precision)
    dims, _, edge = model.backbone.takes
    if x.shape[-1] == edge:
        return forward(x)
    from monai.inferers import sliding_window_inference

    outputs: Any = sliding_window_inference(
        x, (edge,) * dims, len(x), forward, overlap=OVERLAP, mode="gaussian"
    )
    return outputs


def predicted(
    model: Predictor, spec: Mapping[str, Any], metadata: Mapping[str, str], shown: "Shown"
) -> list[list[float]]:
    """Return how well regions are found, and write label maps; see `supervised.predicted`."""
    kind, mixed_precision = _kind(spec), spec["training"]["mixed_precision"]

    def scored(some: Tensor) -> list[list[float]]:
        outputs = whole_outputs(model, shown.volumes.batch(shown.places[some]), mixed_precision)
        probabilities = kind.scores(outputs, (), 1.0).cpu().numpy()
        return [
            _on_own_grid(kind, one, shown, shown.scans[place])
            for place, one in zip(some.tolist(), probabilities, strict=True)
        ]

    with torch.inference_mode():
        parts = in_batches(scored, torch.arange(len(shown.scans)), shown.at_once)
    return [scores for part in parts for scores in part]


def _on_own_grid(kind: Segmentation, probabilities: Array, shown: "Shown", scan: str) -> list[float]:
    """Bring the probabilities [regions, *S] of a scan to its own grid, write its label map and compare it."""
    row = shown.store.rows[shown.store.index_of(scan)]
    own = input_kind(row["input"]).to_own_grid(row, probabilities)
    labels = kind.label_map(own.maps)
    input_kind(row["input"]).write_label_map(row, labels, shown.folder / layout.LABEL_MAP.format(scan=scan))
    return kind.compared(labels, own.labels, own.voxel_mm)
