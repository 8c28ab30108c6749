"""The whole configuration, and what its parts must agree on."""

import itertools
from collections.abc import Collection
from typing import Any, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from neuropeft.config.analyses import Analyses
from neuropeft.config.backbones import Backbone
from neuropeft.config.base import Model, Name
from neuropeft.config.cohorts import Cohort, Preprocessing
from neuropeft.config.grid import Block, Figures, Statistics
from neuropeft.config.methods import Combined, Method
from neuropeft.config.pretraining import ImportedWeights, KeptEncoder, Pretraining, Trained
from neuropeft.config.search import OF_TRAINING, RELATIVE, extremes
from neuropeft.config.tasks import SegmentationTask, Splits, Task
from neuropeft.config.training import Training
from neuropeft.errors import suggest
from neuropeft.probe_names import PROBES


class Config(Model):
    """The whole configuration."""

    cohorts: dict[Name, Cohort] = Field(min_length=1)
    preprocessing: Preprocessing = Preprocessing()
    tasks: dict[Name, Task] = Field(min_length=1)
    splits: Splits = Splits()
    backbones: dict[Name, Backbone] = Field(min_length=1)
    pretraining: dict[Name, Pretraining] = Field(default={})
    methods: dict[Name, Method] = Field(min_length=1)
    training: Training = Training()
    cells_per_job: int = Field(
        default=16, ge=1, le=64, description="most cells that one fine-tune job trains, one after another"
    )
    grid: list[Block] = Field(min_length=1)
    figures: Figures = Figures()
    statistics: Statistics = Statistics()
    analyses: Analyses = Analyses()

    @field_validator("pretraining")
    @classmethod
    def _none_is_reserved(cls, value: dict[str, Pretraining]) -> dict[str, Pretraining]:
        if "none" in value:
            raise ValueError("`none` stands for no pretraining: give the pretraining another name")
        return value

    @field_validator("backbones")
    @classmethod
    def _control_is_reserved(cls, value: dict[str, Backbone]) -> dict[str, Backbone]:
        if "control" in value:
            raise ValueError(
                "`control` stands for what controls have no backbone: give the backbone another name"
            )
        return value

    @field_validator("methods")
    @classmethod
    def _probes_are_reserved(cls, value: dict[str, Method]) -> dict[str, Method]:
        for name in PROBES:
            if name in value:
                raise ValueError(f"`{name}` is the name of a probe: give the method another name")
        return value

    @field_validator("methods")
    @classmethod
    def _combinations_are_resolved(cls, value: dict[str, Method]) -> dict[str, Method]:
        return {
            name: one.resolved(name, value) if isinstance(one, Combined) else one
            for name, one in value.items()
        }

    @model_validator(mode="after")
    def _backbones_can_be_pretrained(self) -> "Config":
        for (name, backbone), (other, one) in itertools.product(self.backbones.items(), self.trained.items()):
            size = self.preprocessing.size
            one.check_backbone(f"pretraining.{other}", f"backbones.{name}", backbone, size)
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        for name, task in self.tasks.items():
            _known(f"tasks.{name}.train", [task.train], self.cohorts)
            _known(f"tasks.{name}.zero_shot", task.zero_shot, self.cohorts)
            for cohort in task.zero_shot:
                given, learnt = (self.cohorts[one].input for one in (cohort, task.train))
                if given != learnt:
                    raise ValueError(
                        f"`tasks.{name}.zero_shot` names {cohort!r} of input {given.kind}, but "
                        f"{task.train!r} is of input {learnt.kind}: name cohorts of one input"
                    )
        for name, trained in self.trained.items():
            _known(f"pretraining.{name}.cohort", [trained.cohort], self.cohorts)
            trained.check_cohort(f"pretraining.{name}", trained.cohort, self.cohorts[trained.cohort])
            if trained.start is not None:
                _known(f"pretraining.{name}.start", [trained.start], self.pretraining)
            if name in self.starts(name)[1:]:
                raise ValueError(f"`pretraining.{name}.start` leads back to {name!r}: give another start")
        for name, kept in self.kept.items():
            _known(f"pretraining.{name}.of", [kept.of], self.trained)
        for index, block in enumerate(self.grid):
            for key in ("tasks", "backbones", "methods", "pretraining"):
                known = [*getattr(self, key), "none"] if key == "pretraining" else getattr(self, key)
                _known(f"grid.{index}.{key}", getattr(block, key), known)
        _known("figures.backbones", self.figures.backbones, {b for one in self.grid for b in one.backbones})
        if self.statistics.reference is not None:
            _known("statistics.reference", [self.statistics.reference], self.methods)
        size = self.preprocessing.size
        for name, backbone in self.backbones.items():
            backbone.check_size(f"backbones.{name}", size)
        for name, task in self.tasks.items():
            if (patch := task.seen(size)) > size:
                raise ValueError(
                    f"`tasks.{name}.patch` {patch} is larger than `preprocessing.size` {size}: leave it out"
                )
            if patch < size:
                self._check_patches(name, patch)
        return self

    def _check_patches(self, task: str, patch: int) -> None:
        """Raise `ValueError` unless the backbones that a task is tried on take its patches."""
        tried = {name for block in self.grid if task in block.tasks for name in block.backbones}
        for name in sorted(tried):
            try:
                self.backbones[name].check_size(f"backbones.{name}", patch)
            except ValueError as error:
                raise ValueError(f"`tasks.{task}.patch` is {patch}: {error}") from error

    @model_validator(mode="after")
    def _label_maps_hold_what_is_segmented(self) -> "Config":
        for name, task in self.tasks.items():
            if not isinstance(task, SegmentationTask):
                continue
            for key, values in task.values.items():
                listed = getattr(self.cohorts[task.train].input, "labels", values)
                if unknown := sorted(set(values) - set(listed)):
                    where = "regions" if task.regions else "classes"
                    raise ValueError(
                        f"`tasks.{name}.{where}.{key}` names the value {unknown[0]}, which "
                        f"`cohorts.{task.train}.input.labels` does not list: list it there or leave it out"
                    )
            unit = "pixels" if self.cohorts[task.train].input.dims == 2 else "mm"
            if task.distances != unit:
                raise ValueError(
                    f"`tasks.{name}.distances` is {task.distances}, but those of {task.train} are in {unit}: "
                    f"set it to {unit}"
                )
        return self

    @model_validator(mode="after")
    def _methods_take_what_is_searched(self) -> "Config":
        if (search := self.training.search) is None:
            return self
        kinds = get_args(get_args(Method)[0])
        known = {*RELATIVE, *OF_TRAINING} | {name for kind in kinds for name in kind.model_fields}
        _known("training.search.ranges", list(search.ranges), known - {"kind", "shuffle_labels"})
        parts: dict[str, Model] = {f"methods.{name}": method for name, method in self.methods.items()}
        for key, tried in search.ranges.items():
            for name, part in {**parts, "training": self.training}.items():
                if key in type(part).model_fields and key not in RELATIVE:
                    for value in extremes(tried):
                        _takes(
                            part, key, value, f"`training.search.ranges.{key}` tries {value!r}, but `{name}`"
                        )
        return self

    def starts(self, pretraining: str) -> list[str]:
        """Return a pretraining, the one that it goes on from, and so on, up to one that comes again."""
        found = [self.kept[pretraining].of if pretraining in self.kept else pretraining]
        while (trained := self.trained.get(found[-1])) and trained.start is not None:
            found.append(trained.start)
            if trained.start in found[:-1]:
                break
        return found

    @model_validator(mode="after")
    def _synthetic_is_for_pretraining(self) -> "Config":
        for name, task in self.tasks.items():
            for key, cohorts in (("train", [task.train]), ("zero_shot", task.zero_shot)):
                for cohort in cohorts:
                    if self.cohorts[cohort].synthetic:
                        raise ValueError(
                            f"`tasks.{name}.{key}` names {cohort!r}, which is synthetic and for pretraining "
                            "only: name a real or a simulated cohort"
                        )
        return self

    @model_validator(mode="after")
    def _augmentation_fits_the_scans(self) -> "Config":
        used = [("training", task.train, self.training.augment) for task in self.tasks.values()]
        used += [(f"pretraining.{name}", one.cohort, one.augment) for name, one in self.trained.items()]
        for key, cohort, augment in used:
            given = self.cohorts[cohort].input
            for change, fits, what in (
                ("crop", given.dims == 2, "images"),
                ("colour", (given.dims, given.depth) == (2, 3), "images of three channels"),
            ):
                if getattr(augment, change) and not fits:
                    raise ValueError(
                        f"`{key}.augment.{change}` is for {what}, but {cohort!r} is of input {given.kind}: "
                        "leave it out"
                    )
        return self

    @property
    def trained(self) -> dict[str, Trained]:
        """The pretrainings that the workflow does itself."""
        return {name: value for name, value in self.pretraining.items() if isinstance(value, Trained)}

    @property
    def imported(self) -> dict[str, ImportedWeights]:
        """The pretrainings whose weights are there already."""
        return {name: value for name, value in self.pretraining.items() if isinstance(value, ImportedWeights)}

    @property
    def kept(self) -> dict[str, KeptEncoder]:
        """The pretrainings that are part of another one."""
        return {name: value for name, value in self.pretraining.items() if isinstance(value, KeptEncoder)}


def _takes(part: Model, key: str, value: Any, what: str) -> None:
    """Raise `ValueError`, which begins with `what`, if a part of the configuration does not take a value.

    A setting that is a list takes it for each of its entries.
    """
    own = getattr(part, key)
    wanted = [value] * len(own) if isinstance(own, list) else value
    try:
        given = {name: getattr(part, name) for name in part.model_fields_set}
        taken = getattr(type(part).model_validate({**given, key: wanted}), key)
    except ValidationError as error:
        raise ValueError(f"{what} does not take: {error.errors()[0]['msg']}") from error
    if taken != wanted:
        raise ValueError(f"{what} reads it as {taken!r}: give that")


def _known(key: str, names: list[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"`{key}` names {name!r}, which is not there; {suggest(name, known)}")
