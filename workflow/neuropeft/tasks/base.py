"""What a kind of task says: how its targets are read, learnt, scored and shown."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from neuropeft.tasks.metrics import Array

if TYPE_CHECKING:
    from torch import Tensor

    from neuropeft.cohorts.index import Scan
    from neuropeft.tasks.values import Place

Row = dict[str, Any]
# The columns of a prediction file, beside those that the kind of the task names.
COLUMNS = ("subset", "seed", "fold", "split", "scan_id", "subject", "session", "y")
GUESS = 0.5  # the probability of a label that is known of no training scan
CONTROL_METHOD = "method"  # which control files have too, since they hold several


@dataclass(frozen=True)
class Metric:
    """A number that says how good predictions are."""

    name: str  # its column in tables
    label: str  # its name in figures and headings
    higher_is_better: bool  # its direction
    # (y [n, ...], score [n] or [n, columns], rule, weights [..., n] or None) -> [...]; see `TaskKind.measure`
    value: Callable[[Array, Array, Array, Array | None], Array]
    in_unit: bool = False  # whether it is in the unit of the target
    part: int | None = None  # the number of the label that it is of; None if it is of all that is predicted

    def title(self, unit: str) -> str:
        """Return its label, with the unit of the target if it is in that."""
        return f"{self.label} ({unit})" if self.in_unit and unit else self.label


@dataclass(frozen=True)
class Objective:
    """How a task is learnt.

    Attributes:
        loss: Loss [B] of each scan: of outputs [B, outputs] against targets [B, ...].
        offset: What turns outputs into what is reported, one per output: the median of a regression target,
            which is the best constant for its loss, or what the loss weighs away of the classes, the log-odds
            of class 1 or, of more classes, the logarithms of their frequencies.
        scale: SD of a regression target; 1 otherwise. Reported are outputs * scale + offset.
    """

    loss: "Callable[[Tensor, Tensor], Tensor]"
    offset: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Run:
    """Predictions of one run on one side: one row per subject, sorted by subject."""

    subjects: tuple[str, ...]  # names, [n]
    y: Array  # targets, as `TaskKind.array` has them, [n, ...]
    score: Array  # [n], or [n, columns] where there are several score columns
    prior: Array  # what the prior columns hold, the same for all rows, [columns]; empty without any


class TaskKind(ABC):
    """A kind of task.

    Attributes:
        metrics: what predictions are scored by; the first one is the primary metric.
        parts: what parts of predictions are scored by besides, such as single labels.
        loss_label: what the loss is, for axes.
        chance: the primary metric of guessing; None where that of the training mean stands for it.
        stratum: what subjects are divided into, of which splits keep the proportions and shots are counted.
        every_stratum: whether a split must have a subject of each stratum on every side.
        regresses: whether linear models are ridge regressions; logistic ones otherwise.
        learner: the module that makes what the loop trains of it, `learner`.
        predictor: the module that makes scores of it, `predicted`; the learner's, if empty.
        decoder: the module that builds its network, if that gives no outputs of a whole scan.
        decoded_by: which of that module's decoders it has, if settings say.
        label_maps: whether targets are label maps, which stores have.
        controls: the module that makes its controls, `write_controls`.
        predicts_validation: whether the validation side is predicted, too.
        size: how many classes or labels it tells apart; 0 for values.
    """

    metrics: tuple[Metric, ...]
    loss_label: ClassVar[str]
    chance: ClassVar[float | None] = 0.5
    stratum: ClassVar[str] = "class"
    every_stratum: ClassVar[bool] = False
    regresses: ClassVar[bool] = False
    parts: tuple[Metric, ...] = ()
    learner: ClassVar[str] = "train.supervised"
    predictor: ClassVar[str] = ""
    decoder: ClassVar[str] = ""
    decoded_by: str | None = None
    label_maps: ClassVar[bool] = False
    controls: ClassVar[str] = "evaluate.controls"
    predicts_validation: ClassVar[bool] = True

    def __init__(self, size: int, told: str = "") -> None:
        """Make the kind for a number of classes or labels; `told` is what else settings say, as JSON."""
        self.size = size

    # -- targets --

    @abstractmethod
    def read(self, place: "Place", task: Any, scans: "Sequence[Scan]") -> list[Any]:
        """Return the target of every scan as tables hold it, None where it has none.

        Args:
            place: Where the scans' labels come from, for errors.
            task: The task's settings, of this kind.
            scans: Scans with the labels of their cohort's tables.

        Raises:
            UserError: A value cannot be read.
        """

    @abstractmethod
    def check(self, place: "Place", task: Any, rows: Sequence[Row], scans: "Sequence[Scan]") -> None:
        """Check that the rows that have a target suffice to learn from; `scans` are all that were read.

        Raises:
            UserError: They do not.
        """

    @abstractmethod
    def strata(self, targets: Mapping[str, Any]) -> dict[str, int]:
        """Return the stratum of each subject, which splits keep in proportion."""

    def array(self, targets: Iterable[Any]) -> Array:
        """Return targets, as text or value, as an array: [n], or [n, labels] with NaN where unknown."""
        return np.array([float(target) for target in targets])

    def truth(self, targets: Iterable[Any]) -> Array:
        """Return targets as `array` does, but unknown where they are only supposed: what scores compare."""
        return self.array(targets)

    def nothing_to_learn(self, y: Array) -> bool:
        """Whether these targets [n, ...] of training scans leave nothing to tell apart."""
        return not self.regresses and len(np.unique(y)) < 2

    # -- networks; torch is imported in these alone --

    @property
    def outputs(self) -> int:
        """Outputs of a network."""
        return 1

    @abstractmethod
    def objective(self, targets: Array, weights: Sequence[float], name: str) -> Objective:
        """Return how a cell learns, with what is known from its training targets alone.

        Args:
            targets: Targets of the training scans, [n, ...].
            weights: How much each of them counts, see `labels.subject_weights`.
            name: The cell, for errors.

        Raises:
            UserError: There is nothing to learn.
        """

    @abstractmethod
    def scores(self, outputs: "Tensor", offset: Sequence[float], scale: float) -> "Tensor":
        """Return probabilities, or values in the target's unit, [n, columns] of outputs [n, outputs].

        Probabilities are those of a population with the training set's class frequencies.
        """

    # -- predictions --

    @property
    def score_columns(self) -> list[str]:
        """The columns of a prediction file that hold scores."""
        return ["score"]

    def read_scores(self, rows: Sequence[Mapping[str, str]], folder: Path) -> Array:
        """Return what is scored of a prediction file's rows, [n, columns]; `folder` has their other files."""
        return np.array([[float(row[name]) for name in self.score_columns] for row in rows]).reshape(
            len(rows), len(self.score_columns)
        )

    @property
    def prior_columns(self) -> list[str]:
        """The columns of a prediction file that hold what scores suppose of the training set."""
        return []

    def prior(self, offset: Sequence[float]) -> list[float]:
        """Return what the prior columns hold for a network with this offset."""
        return []

    def measure(self, y: Array, score: Array, rule: Array, weights: Array | None = None) -> dict[str, Array]:
        """Return all metrics, those of parts among them, {name: [...]}.

        Args:
            y: targets, one row per subject, [n, ...].
            score: [n] or [n, columns].
            rule: what `rule` returned.
            weights: how often each subject counts, [..., n]; None for once each.
        """
        if not np.isfinite(score).all():
            shape = () if weights is None else weights.shape[:-1]
            return {metric.name: np.full(shape, np.nan) for metric in (*self.metrics, *self.parts)}
        return {metric.name: metric.value(y, score, rule, weights) for metric in (*self.metrics, *self.parts)}

    def rule(self, validation: Run | None, tested: Run) -> Array:
        """Return by what classes are predicted, for each test subject, [n, ...]; validation may choose it.

        NaN as long as there are no predictions on validation, and where there is no such rule.
        """
        return np.full(len(tested.subjects), np.nan)

    @property
    def validation_chooses(self) -> str:
        """What validation chooses, for messages; empty if nothing."""
        return ""

    @abstractmethod
    def why_undefined(self, y: Array, score: Array) -> str:
        """Return why some metric of these predictions is NaN; empty if none need be."""

    # -- linear models, for controls and probes --

    def separate(self, y: Array) -> Iterator[tuple[NDArray[np.bool_], Array]]:
        """Yield, for each model to fit, the rows whose target is known, and these targets."""
        yield np.ones(len(y), bool), y

    @abstractmethod
    def constant_scores(self, y: Array) -> Array:
        """Return scores [columns] that need no features: the mean, or the class frequencies."""

    @abstractmethod
    def model_scores(self, models: Sequence[Any], features: Array) -> Array:
        """Return scores [n, columns] of fitted sklearn models, one for each of `separate`.

        A float stands for a model whose training targets were all of one class: their class.
        """
