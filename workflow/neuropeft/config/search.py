"""The search: which settings every method tries, how often, and for how long."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import Model

RELATIVE = ("lr", "head_lr")  # tried as factors on what the method gives
OF_TRAINING = ("batch_size", "warmup_epochs", "drop_path")  # the others are settings of methods


class Range(Model):
    """Numbers between two, both included; whole ones if both are."""

    low: int | float
    high: int | float
    log: bool = Field(default=False, description="draw the logarithm evenly, not the number")

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"`low` {self.low} must be less than `high` {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low` {self.low} must be more than 0 where `log` is on")
        return self

    @property
    def ends(self) -> list[Any]:
        """The lowest and the highest number."""
        return [self.low, self.high]

    def at_edge(self, value: float) -> bool:
        """Whether a value lies in the lowest or highest tenth of the range."""
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return not 0.1 < share < 0.9


Choices = Annotated[list[int | float], Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]

# Method book, section 4 (recipes C2 and C3); the paper searched batch size, learning rate, warm-up, weight
# decay and dropout.
RANGES: dict[str, Any] = {
    "lr": Range(low=0.3, high=3.0, log=True),
    "head_lr": Range(low=0.3, high=3.0, log=True),
    "weight_decay": [0.0, 1e-4, 0.05],
    "batch_size": [8, 16, 32],
    "warmup_epochs": Range(low=1, high=10),
    "drop_path": Range(low=0.0, high=0.2),
    "dropout": [0.0, 0.1],
    "r": [4, 8, 16, 32],
    "bottleneck": [16, 32, 64],
    "prompts": [5, 10, 50],
    "mask": ["", "norm1+norm2", "attn", "mlp", "norm1+attn+norm2+mlp"],  # of each block, as FairTune's search
}


class Search(Model):
    """A search of settings, with the same budget for every method; validation chooses."""

    trials: int = Field(
        default=12,
        ge=1,
        description="of each task, backbone, start and method, on each fold; the first is what is given",
    )
    trials_per_job: int = Field(default=4, ge=1, description="most trials, on each fold, that a job trains")
    sampler: Literal["random", "tpe", "grid"] = Field(
        default="random",
        description="random: as in the paper, all jobs at once; tpe: Optuna's, which learns from the trials "
        "before, one job after another; grid: all combinations of lists, whatever `trials` says",
    )
    pruner: Literal["none", "median"] = Field(
        default="none",
        description="median: a trial ends whose loss is worse than the median of those before it in its job "
        "(tpe: of all before it) at the same validation",
    )
    share: float = Field(default=0.25, gt=0, le=1, description="of a cell's steps, for each trial")
    ranges: dict[str, Range | Choices] = Field(
        default=RANGES,
        min_length=1,
        description="what is tried: values to choose from, or a range. lr and head_lr are factors on the "
        "method's own; a method that has no such setting leaves it out; of one that is a list, such as "
        "FairTune's `mask`, each entry is chosen by itself",
    )

    @model_validator(mode="after")
    def _grid_is_of_lists(self) -> "Search":
        ranges = [name for name, tried in self.ranges.items() if isinstance(tried, Range)]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"`sampler: grid` needs lists: give `ranges.{ranges[0]}` as one")
        return self

    @model_validator(mode="after")
    def _factors_are_numbers(self) -> "Search":
        for name in RELATIVE:
            tried = self.ranges.get(name, [])
            if isinstance(tried, list) and any(isinstance(value, str) for value in tried):
                raise ValueError(f"`ranges.{name}` has text: give factors, which are numbers")
        return self

    def count(self, method: Mapping[str, Any]) -> int:
        """Return the number of trials of a method with these settings: the same for all but in a grid."""
        return len(self.grid(method)) if self.sampler == "grid" else self.trials

    def grid(self, method: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return all combinations of lists that a method with these settings tries."""
        tried = self.drawn(method)
        lists = [values if isinstance(values, list) else [] for values in tried.values()]
        return [dict(zip(tried, values, strict=True)) for values in product(*lists)]

    def firsts(self, method: Mapping[str, Any]) -> range:
        """Return the number of the first trial of each job."""
        return range(0, self.count(method), self.trials_per_job)

    def drawn(self, method: Mapping[str, Any]) -> dict[str, Range | Choices]:
        """Return what is drawn for a method: what is tried, an entry of a list, `mask.0` say, by itself."""
        return {
            name if entry is None else f"{name}.{entry}": tried
            for name, tried in self.of(method).items()
            for entry in (range(len(method[name])) if isinstance(method.get(name), list) else [None])
        }

    def of(self, method: Mapping[str, Any]) -> dict[str, Range | Choices]:
        """Return what is tried of a method with these settings: what it has, shared settings first."""
        known = {*RELATIVE, *OF_TRAINING, *method}
        order = [*RELATIVE, *OF_TRAINING, "weight_decay", *self.ranges]
        return {
            name: self.ranges[name] for name in dict.fromkeys(order) if name in self.ranges.keys() & known
        }


def extremes(tried: Range | Choices) -> list[Any]:
    """Return the values that a method must take if it takes all that are tried."""
    return tried.ends if isinstance(tried, Range) else tried


def contains(tried: Range | Choices, value: Any) -> bool:
    """Whether a value is among those that are tried."""
    if isinstance(tried, Range):
        return isinstance(value, int | float) and tried.low <= value <= tried.high
    return value in tried


def at_edge(tried: Range | Choices, value: Any) -> bool:
    """Whether a value is at the edge of what was tried, so that a better one may lie beyond it."""
    if isinstance(tried, Range):
        return tried.at_edge(value)
    return not isinstance(value, str) and len(tried) > 1 and value in (min(tried), max(tried))
