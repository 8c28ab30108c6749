"""Drawing images from texts: scored as a set by a Frechet distance, one by one for copies and agreement."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from neuropeft import layout
from neuropeft.errors import UserError
from neuropeft.records import AGAIN
from neuropeft.tasks.base import Array, Metric, Objective, Row, TaskKind
from neuropeft.tasks.frechet import frechet
from neuropeft.tasks.metrics import weighted_mean
from neuropeft.tasks.values import TEXT, Place, is_missing

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.config import GenerationTask

SUBJECTS = 3  # one for each side of a split
FID = ".pt"  # suffix of FID's own network


class Generation(TaskKind):
    """An image of each text. A target is the text.

    The scores of a drawn image are how near it is to a training image, whether it is a copy of it, and how
    well it agrees with its text; behind them stand its features and those of the real image of that text.
    """

    loss_label = "denoising loss (MSE)"
    chance = None
    stratum = "cohort"
    learner: ClassVar[str] = "train.denoise"
    predictor: ClassVar[str] = "train.drawn"
    decoder: ClassVar[str] = "backbones.diffusion"
    controls: ClassVar[str] = "evaluate.real_images"
    predicts_validation: ClassVar[bool] = False  # drawing takes long, and validation chooses nothing of it

    def __init__(self, size: int, told: str = "") -> None:
        """Make the kind.

        Args:
            size: 0.
            told: JSON of `encoder`, `agreement`, `steps` and `guidance` of `config.tasks.GenerationTask`;
                trainings need none.
        """
        super().__init__(size, told)
        self.drawing: dict[str, Any] = json.loads(told or "{}")
        by_fid = self.drawing.get("encoder", "").endswith(FID)
        agreement = Metric("agreement", "agreement with the text (cosine)", True, _mean_of(2))
        self.metrics = (
            Metric("frechet", "FID" if by_fid else "Fréchet distance", False, self._distance),
            *([agreement] if self.drawing.get("agreement") else []),
            Metric("nearest", "distance to the nearest training image (1: as among them)", True, _mean_of(0)),
            Metric("copied", "copies of a training image (share)", False, _mean_of(1)),
        )

    def _distance(self, y: Array, score: Array, rule: Array, weights: Array | None) -> Array:
        """Return the Frechet distance, and around it its draws where there are weights [..., n]."""
        own = len(self.score_columns)
        middle = (own + score.shape[1]) // 2
        distance, influence = frechet(score[:, own:middle], score[:, middle:])
        if weights is None:
            return np.array(distance)
        return np.maximum(distance + weights @ influence / weights.sum(-1), 0.0)

    # -- targets --

    def read(self, place: Place, task: "GenerationTask", scans: "Sequence[Scan]") -> list[str | None]:
        """Return the text of every scan in one line, None of those that have none."""
        texts = [" ".join(scan.labels.get(task.text, "").split()) for scan in scans]
        return [None if is_missing(text) else TEXT + text for text in texts]

    @staticmethod
    def words(target: str) -> str:
        """Return the text that a target is."""
        return target.removeprefix(TEXT)

    def check(
        self, place: Place, task: "GenerationTask", rows: Sequence[Row], scans: "Sequence[Scan]"
    ) -> None:
        """Check that enough subjects have a text."""
        if (subjects := len({row["subject"] for row in rows})) < SUBJECTS:
            problem = f"only {subjects} subjects have a text in {task.text!r}"
            raise place.error("text", problem, "fill in the column or choose another")

    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return one stratum for all."""
        return dict.fromkeys(targets, 0)

    def array(self, targets: Iterable[Any]) -> Array:
        """Return the texts, [n]."""
        return np.array(list(targets))

    def nothing_to_learn(self, y: Array) -> bool:
        """There is always an image to learn from."""
        return False

    # -- networks --

    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return the squared error of what a U-Net says, mean over its outputs [B, C, h, w]."""

        def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
            return (outputs - targets).square().flatten(1).mean(1)

        return Objective(loss, ())

    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Raise: `train.denoise` draws images and scores them."""
        raise NotImplementedError

    # -- predictions --

    @property
    def score_columns(self) -> list[str]:
        """See the class."""
        return ["nearest", "copied", *(["agreement"] if self.drawing.get("agreement") else [])]

    def read_scores(self, rows: Sequence[Mapping[str, str]], folder: Path) -> Array:
        """Return the columns of rows, then features of drawn and of real images, [n, columns + 2 D]."""
        path = folder / layout.FEATURES_OF_IMAGES
        try:
            with np.load(path) as stored:
                found = {name: stored[name] for name in ("scan_id", "drawn", "real")}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"cannot read {path}: {error}; {AGAIN}") from error
        places = {scan: place for place, scan in enumerate(found["scan_id"].tolist())}
        if unknown := [row["scan_id"] for row in rows if row["scan_id"] not in places]:
            raise UserError(f"{path} lacks {unknown[0]}: {AGAIN}")
        chosen = [places[row["scan_id"]] for row in rows]
        return np.hstack([super().read_scores(rows, folder), found["drawn"][chosen], found["real"][chosen]])

    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why metrics are NaN, which all are if one is."""
        return (
            ""
            if np.isfinite(score).all()
            else "features are not finite, or one subject alone was learnt from"
        )

    # -- linear models: there are none --

    def constant_scores(self, y: Array) -> Array:
        """Raise, as `config.tasks` says that there are no linear models."""
        raise NotImplementedError

    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Raise, as `constant_scores` does."""
        raise NotImplementedError


def _mean_of(column: int) -> Any:
    """Return the metric that is the weighted mean over subjects of a column."""
    return lambda y, score, rule, weights: weighted_mean(score[:, column], weights)
