"""Finding regions: classes that exclude one another, or regions that may hold one another."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuropeft.tasks.base import Array, Metric, Objective, Row, TaskKind
from neuropeft.tasks.metrics import weighted_mean
from neuropeft.tasks.overlap import overlap
from neuropeft.tasks.values import Place

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.config import SegmentationTask

RAREST = 1e-6  # share of voxels that a region is taken to have at least
SUBJECTS = 3  # one for each side of a split
SORTS = (("dice", "Dice", True), ("hd95", "HD95 ({unit})", False), ("nsd", "surface Dice", True))


def _mean_of(columns: list[int], y: Array, score: Array, rule: Array, weights: Array | None) -> Array:
    """Return the weighted mean over subjects of the mean of some columns."""
    return weighted_mean(score[:, columns].mean(1), weights)


class Segmentation(TaskKind):
    """A region of each scan per class. A target is the scan whose label map is learnt: itself.

    The scores of a scan are no probabilities but how well its regions were found, on its own grid: Dice, HD95
    and surface Dice (`overlap`) of each region. Metrics are their means over subjects.
    """

    loss_label = "loss (Dice + cross-entropy)"
    chance = None
    stratum = "cohort"
    learner: ClassVar[str] = "train.dense"
    decoder: ClassVar[str] = "backbones.decoders"
    label_maps: ClassVar[bool] = True

    def __init__(self, size: int, told: str) -> None:
        """Make the kind for `size` regions.

        Args:
            size: How many there are.
            told: JSON of `regions`, {name: values of the label map}, whether they are `nested`, and
                `tolerance_mm` of surface Dice; `distances`, if not mm; and `decoder`, if given.
        """
        super().__init__(size, told)
        settings = json.loads(told)
        self.regions: dict[str, list[int]] = settings["regions"]
        self.nested: bool = settings["nested"]
        self.tolerance_mm: float = settings["tolerance_mm"]
        self.decoded_by = settings.get("decoder")
        unit = settings.get("distances", "mm")
        sorts = [(name, label.format(unit=unit), higher) for name, label, higher in SORTS]
        columns = {sort: list(range(sort, size * len(SORTS), len(SORTS))) for sort in range(len(SORTS))}
        self.metrics = tuple(
            Metric(name, label, higher, partial(_mean_of, columns[sort]))
            for sort, (name, label, higher) in enumerate(sorts)
        )
        self.parts = tuple(
            Metric(f"{name}_{region}", label, higher, partial(_mean_of, [columns[sort][region]]), part=region)
            for region in range(size)
            for sort, (name, label, higher) in enumerate(sorts)
        )

    # -- targets --

    def read(self, place: Place, task: "SegmentationTask", scans: "Sequence[Scan]") -> list[str | None]:
        """Return the name of every scan that has a label map, None of the others."""
        return [None if scan.mask is None else scan.scan_id for scan in scans]

    def check(
        self, place: Place, task: "SegmentationTask", rows: Sequence[Row], scans: "Sequence[Scan]"
    ) -> None:
        """Check that enough subjects have a label map."""
        subjects = len({row["subject"] for row in rows})
        if subjects < (SUBJECTS if place.trains else 1):
            problem = f"only {subjects} subjects have a label map"
            fix = f"name them in the column 'label' of its table, or {place.without()}"
            raise place.error("kind", problem, fix)

    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return one stratum for all."""
        return dict.fromkeys(targets, 0)

    def array(self, targets: Iterable[Any]) -> Array:
        """Return the names of scans, [n]."""
        return np.array(list(targets))

    def nothing_to_learn(self, y: Array) -> bool:
        """Label maps are not looked at: there is."""
        return False

    # -- networks --

    @property
    def outputs(self) -> int:
        """A logit per region, and one of the background where regions exclude one another."""
        return self.size if self.nested else self.size + 1

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return soft Dice, the mean over regions, plus the cross-entropy, of logits and label maps."""
        import torch
        from monai.losses import DiceLoss
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        soft = DiceLoss(
            include_background=self.nested, sigmoid=self.nested, softmax=not self.nested, reduction="none"
        )

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            truth = self.masks(targets)
            if self.nested:
                entropy = binary_cross_entropy_with_logits(outputs, truth.float(), reduction="none")
            else:
                truth = torch.cat([~truth.any(1, keepdim=True), truth], dim=1)
                entropy = cross_entropy(outputs, truth.to(torch.uint8).argmax(1), reduction="none")
            return soft(outputs, truth.float()).flatten(1).mean(1) + entropy.flatten(1).mean(1)

        return Objective(loss, ())

    def masks(self, labels: "Tensor") -> "Tensor":
        """Return which voxels of label maps [B, *S] are in each region, [B, regions, *S]."""
        import torch

        of_regions = [
            torch.stack([labels == value for value in values]).any(0) for values in self.regions.values()
        ]
        return torch.stack(of_regions, dim=1)

    def prior_logits(self, shares: "Tensor") -> "Tensor":
        """Return the logits [outputs] that tell in every voxel how often regions are, of shares [regions]."""
        import torch

        shares = shares.clamp(RAREST, 1 - RAREST)
        if self.nested:
            return shares.logit()
        return torch.cat([(1 - shares.sum(0, keepdim=True)).clamp_min(RAREST), shares]).log()

    def found(self, probabilities: "Tensor") -> "Tensor":
        """Return which voxels are predicted to be in each region, of probabilities [B, regions, *S]."""
        import torch

        if self.nested:
            return probabilities > 0.5
        background = 1 - probabilities.sum(1, keepdim=True)
        best = torch.cat([background, probabilities], dim=1).argmax(1)
        return torch.stack([best == place for place in range(1, self.size + 1)], dim=1)

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return the probability of each region in each voxel, [B, regions, *S]."""
        return outputs.sigmoid() if self.nested else outputs.softmax(dim=1)[:, 1:]

    # -- predictions --

    def label_map(self, probabilities: Array) -> NDArray[np.uint8]:
        """Return the label map, uint8 [*S], of a scan with these probabilities of regions [regions, *S].

        Regions are painted in their order, the inner ones over the outer ones, each by its lowest value that
        no later one has.
        """
        import torch

        values = list(self.regions.values())
        labels = np.zeros(probabilities.shape[1:], np.uint8)
        for place, found in enumerate(self.found(torch.from_numpy(probabilities)[None])[0].numpy()):
            labels[found] = min(set(values[place]).difference(*values[place + 1 :]))
        return labels

    def compared(
        self, predicted: NDArray[np.uint8], truth: NDArray[np.uint8], voxel_mm: Sequence[float]
    ) -> list[float]:
        """Return the scores of a scan from its label maps [*S], in the order of `score_columns`."""
        found = [
            overlap(np.isin(predicted, values), np.isin(truth, values), voxel_mm, self.tolerance_mm)
            for values in self.regions.values()
        ]
        return [value for region in found for value in region]

    @property
    def score_columns(self) -> list[str]:
        """Dice, HD95 and surface Dice of each region."""
        return [f"{name}_{region}" for region in self.regions for name, *_ in SORTS]

    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why some metric is NaN; with finite scores none is."""
        return "" if np.isfinite(score).all() else "predictions are not finite"

    # -- linear models: there are none --

    def constant_scores(self, y: Array) -> Array:
        """Raise, as `config.tasks` says that there are no controls."""
        raise NotImplementedError

    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Raise, as `constant_scores` does."""
        raise NotImplementedError
