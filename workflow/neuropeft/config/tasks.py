"""Tasks, and how the subjects of a training cohort are split."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from neuropeft.config.base import Model, Name, Share, check_no_repeats

TESTED = 0.2  # share of the subjects


def _no_yes(value: object) -> object:
    # YAML reads a bare `no`, `yes`, `on` or `true` as a truth value; the table holds text.
    if isinstance(value, bool):
        raise ValueError("YAML reads this as true/false: put the value in quotes, as it stands in the table")
    return value


LabelValue = Annotated[str | int | float, BeforeValidator(_no_yes)]


def _as_list(value: LabelValue | list[LabelValue]) -> list[LabelValue]:
    return value if isinstance(value, list) else [value]


class _Task(Model):
    """What is predicted, on which cohorts."""

    needs: ClassVar[frozenset[str]] = frozenset()  # what the kind of input of its cohorts must provide
    # Whether linear models can predict it: controls, and probes of frozen backbones
    linear: ClassVar[bool] = True
    told: ClassVar[str] = ""  # what its kind must know beside its size, as JSON
    passes: ClassVar[int] = 1  # how often a scan passes through the network to be predicted
    where: dict[str, LabelValue | list[LabelValue]] = Field(
        default={}, description="filter: {column: value or values}; scans with other values are left out"
    )
    train: Name = Field(description="cohort that is split into training, validation and test")
    zero_shot: list[Name] = Field(default=[], description="cohorts that are only ever tested on")

    @model_validator(mode="after")
    def _zero_shot_is_not_trained_on(self) -> "_Task":
        if self.train in self.zero_shot:
            raise ValueError(f"`zero_shot` names the training cohort {self.train!r}: remove it there")
        check_no_repeats("zero_shot", self.zero_shot)
        return self

    @property
    def part_names(self) -> list[str]:
        """The names of the parts that are scored besides, by their number (see `tasks.base.Metric.part`)."""
        return []

    def seen(self, size: int) -> int:
        """Return the edge of what a network sees at once of scans of edge `size`, in voxels."""
        return size

    def spec(self, name: str) -> dict[str, Any]:
        """Return what defines the task of this name for trainings and scores."""
        spec = {"name": name, "kind": self.kind, "size": self.size}  # type: ignore[attr-defined]
        return spec | ({"told": self.told} if self.told else {})

    def trained(self, name: str) -> dict[str, Any]:
        """Return what of `spec` defines trainings."""
        return self.spec(name)

    @property
    def of_predictions(self) -> str:
        """What of `told` predictions depend on and trainings do not."""
        return ""

    @property
    def scorers(self) -> list[str]:
        """The files of networks that score predictions."""
        return []

    def filters(self) -> dict[str, list[LabelValue]]:
        """Return the values that each filter column may have."""
        return {column: _as_list(values) for column, values in self.where.items()}


class _OneTarget(_Task):
    target: str = Field(description="column that holds the target")

    @property
    def target_columns(self) -> dict[str, str]:
        """The columns that hold targets, by the key that names each."""
        return {"target": self.target}


class _Classes(_OneTarget):
    classes: dict[str, LabelValue | list[LabelValue]] = Field(
        description="{class: value or values of the target column}, in order; the second class of a binary "
        "task is the positive one; scans with other values are left out"
    )
    unit: ClassVar[str] = ""

    @property
    def size(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def class_values(self) -> dict[str, list[LabelValue]]:
        """Return the values of the target column that stand for each class, in the order of the classes."""
        return {name: _as_list(values) for name, values in self.classes.items()}


class BinaryTask(_Classes):
    """Telling two classes apart."""

    kind: Literal["binary"]

    @field_validator("classes")
    @classmethod
    def _two(cls, value: dict[str, object]) -> dict[str, object]:
        if len(value) != 2:
            raise ValueError(f"a binary task has two `classes`, not {len(value)}")
        return value


class MulticlassTask(_Classes):
    """Telling three or more classes apart."""

    kind: Literal["multiclass"]

    @field_validator("classes")
    @classmethod
    def _three_or_more(cls, value: dict[str, object]) -> dict[str, object]:
        if len(value) < 3:
            raise ValueError("a multiclass task has three or more `classes`; use `kind: binary` for two")
        return value


class RegressionTask(_OneTarget):
    """Predicting a number."""

    kind: Literal["regression"]
    unit: str = Field(default="", description="unit of the target, for tables and figures")
    size: ClassVar[int] = 0  # no classes


Policy = Literal["ignore", "zeros", "ones"]


class MultilabelTask(_Task):
    """Telling which of several labels a scan has; each is present (1), absent (0), uncertain or unknown."""

    kind: Literal["multilabel"]
    labels: dict[Name, str] = Field(
        min_length=2,
        description="{label: column}, whose values are 1, 0, -1 where it is uncertain, or n/a or empty",
    )
    uncertain: Policy | dict[Name, Policy] = Field(
        default="ignore",
        description="what is learnt of an uncertain label (-1): nothing, that it is absent, or that it is "
        "present (CheXpert's U-Ignore, U-Zeros and U-Ones), the same for all or {label: policy}; it never "
        "counts in scores",
    )
    blank: Literal["ignore", "zeros"] = Field(
        default="ignore",
        description="what n/a and empty cells say: that the label is unknown, or absent, as where a report "
        "does not mention it",
    )
    unit: ClassVar[str] = ""

    @model_validator(mode="after")
    def _policies_are_of_labels(self) -> "MultilabelTask":
        for name in self.uncertain if isinstance(self.uncertain, dict) else ():
            if name not in self.labels:
                raise ValueError(f"`uncertain` names {name!r}, which is no label: name one of `labels`")
        return self

    def learnt(self, label: str) -> Policy:
        """Return what is learnt where a label is uncertain."""
        return self.uncertain.get(label, "ignore") if isinstance(self.uncertain, dict) else self.uncertain

    @property
    def size(self) -> int:
        """How many labels there are."""
        return len(self.labels)

    @property
    def part_names(self) -> list[str]:
        """The labels."""
        return list(self.labels)

    @property
    def target_columns(self) -> dict[str, str]:
        """The columns that hold labels, by the key that names each."""
        return {f"labels.{name}": column for name, column in self.labels.items()}


def _as_values(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


class SegmentationTask(_Task):
    """Finding regions of a scan: classes of voxels, or regions that hold one another."""

    needs: ClassVar[frozenset[str]] = frozenset({"label maps"})
    linear: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    kind: Literal["segmentation"]
    classes: dict[Name, int | list[int]] = Field(
        default={}, description="{class: value or values of the label maps}; all others are background"
    )
    regions: dict[Name, list[int]] = Field(
        default={},
        description="in place of `classes`: {region: values}, outer ones first, such as BraTS' "
        "{whole: [1, 2, 4], core: [1, 4], enhancing: [4]}",
    )
    tolerance: float = Field(
        default=1.0,
        gt=0,
        description="how far apart surfaces count as the same in surface Dice, in mm or pixels",
    )
    distances: Literal["mm", "pixels"] = Field(
        default="mm", description="what they are in; of images, whose pixels have no known size, pixels"
    )
    decoder: Literal["unet", "upernet"] | None = Field(
        default=None,
        description="what makes regions of a backbone's feature maps: a U-Net's, on a ViT a light UNETR's; "
        "or UPerNet (Xiao 2018), of 2D transformers alone, which have it by default",
    )

    patch: int | None = Field(
        default=None,
        ge=8,
        description="edge, in voxels, of the patches that networks are trained on, where whole scans do not "
        "fit; a window of that size slides over scans that are predicted",
    )

    @model_validator(mode="after")
    def _regions_can_be_told_apart(self) -> "SegmentationTask":
        if bool(self.classes) == bool(self.regions):
            raise ValueError("a segmentation needs either `classes` or `regions`: give one of the two")
        values = list(self.values.values())
        for place, (name, own) in enumerate(self.values.items()):
            others = values[place + 1 :] if self.regions else values[:place] + values[place + 1 :]
            shared = set(own).intersection(*[set().union(*others)])
            if not own or (shared == set(own) if self.regions else shared):
                where = "regions" if self.regions else "classes"
                raise ValueError(
                    f"`{where}.{name}` has no value that tells it from others: give each class its own "
                    "values, and each region one that no later region has"
                )
        return self

    @property
    def values(self) -> dict[str, list[int]]:
        """The values of the label maps that each class or region has."""
        return {name: _as_values(some) for name, some in (self.classes or self.regions).items()}

    @property
    def size(self) -> int:
        """How many classes or regions there are."""
        return len(self.values)

    def seen(self, size: int) -> int:
        """Return the edge of a patch, if there are patches."""
        return self.patch or size

    @property
    def part_names(self) -> list[str]:
        """The classes or regions."""
        return list(self.values)

    @property
    def told(self) -> str:  # type: ignore[override]
        """The regions, whether they hold one another, the tolerance, and what is not as it is by default."""
        told = {"regions": self.values, "nested": bool(self.regions), "tolerance_mm": self.tolerance}
        return json.dumps(told | self.model_dump(include={"distances", "decoder"}, exclude_defaults=True))

    @property
    def target_columns(self) -> dict[str, str]:
        """No column: kinds of input read label maps."""
        return {}


class GenerationTask(_Task):
    """Drawing an image from a text that describes it."""

    needs: ClassVar[frozenset[str]] = frozenset({"2D"})
    linear: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    size: ClassVar[int] = 0  # no classes
    kind: Literal["generation"]
    text: str = Field(
        description="column that holds the texts, such as reports; scans without one are left out"
    )
    encoder: str = Field(
        description="what features images are compared by in the Frechet distance: the folder of an image "
        "encoder as transformers stores it, or FID's own network, inception-2015-12-05.pt of StyleGAN2-ADA"
    )
    agreement: str | None = Field(
        default=None,
        description="folder of a CLIP-like model as transformers stores it, which says how well image and "
        "text agree",
    )
    steps: int = Field(default=50, ge=1, description="steps in which an image is drawn")
    guidance: float = Field(
        default=7.5,
        ge=1,
        description="how much the text counts against none (classifier-free guidance); 1: as is",
    )

    @model_validator(mode="after")
    def _only_at_home(self) -> "GenerationTask":
        if self.zero_shot:
            raise ValueError("a generation is scored on the cohort that it is trained on: remove `zero_shot`")
        return self

    @property
    def told(self) -> str:  # type: ignore[override]
        """How images are drawn and scored."""
        return self.model_dump_json(include={"encoder", "agreement", "steps", "guidance"})

    def trained(self, name: str) -> dict[str, Any]:
        """Return the task without how images are drawn and scored, which trains nothing anew."""
        return {"name": name, "kind": self.kind, "size": self.size}

    @property
    def of_predictions(self) -> str:
        """All of it."""
        return self.told

    @property
    def told_networks(self) -> str:
        """What of it the features of real images depend on."""
        return self.model_dump_json(include={"encoder", "agreement"})

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Each step, with the text and without."""
        return 2 * self.steps

    @property
    def scorers(self) -> list[str]:
        """The files of the networks that score images."""
        named = [self.encoder, *([self.agreement] if self.agreement else [])]
        return [one if one.endswith(".pt") else f"{one}/model.safetensors" for one in named]

    @property
    def target_columns(self) -> dict[str, str]:
        """The column of texts."""
        return {"text": self.text}


Task = Annotated[
    BinaryTask | MulticlassTask | RegressionTask | MultilabelTask | SegmentationTask | GenerationTask,
    Field(discriminator="kind"),
]


class Splits(Model):
    """Shares of a training cohort's subjects, or folds; what they leave is for training."""

    test: Share | None = Field(
        default=None,
        description="share of the subjects that is tested on, the same for all seeds; "
        f"{TESTED} if neither it nor `folds` is given",
    )
    validation: Share = Field(
        default=0.1, description="share of all subjects that chooses the epoch; per seed"
    )
    folds: int | None = Field(
        default=None,
        ge=2,
        description="cross-validation: every subject is tested on once per seed, in one of so many folds",
    )

    @model_validator(mode="after")
    def _leave_training_subjects(self) -> "Splits":
        if self.folds is not None and self.test is not None:
            raise ValueError("`folds` test every subject, so `test` has no use: remove one of the two")
        if self.test_share + self.validation >= 1:
            tested = "`test`" if self.folds is None else "a fold"
            raise ValueError(f"{tested} and `validation` together must leave subjects for training")
        return self

    @property
    def test_share(self) -> float:
        """Share of the subjects that a split tests on."""
        if self.folds is not None:
            return 1 / self.folds
        return TESTED if self.test is None else self.test

    @property
    def fold_numbers(self) -> range:
        """The folds of each seed, 1 to `folds`; 0 alone stands for the fixed test side."""
        return range(1) if self.folds is None else range(1, self.folds + 1)
