"""The configuration: what config.yaml may say; `configfile` reads it.

Every model forbids unknown keys, and what a validator says names the key and what to change.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from neuropeft.errors import suggest
from neuropeft.probe_names import PROBES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
TESTED = 0.2  # share of the subjects
# Of `preprocessing.size`: below, its last maps are single values, and those of a lone scan have no variance.
SMALLEST_OF_DENSENET = 64


def _no_yes(value: object) -> object:
    # YAML reads a bare `no`, `yes`, `on` or `true` as a truth value; the table holds text.
    if isinstance(value, bool):
        raise ValueError("YAML reads this as true/false: put the value in quotes, as it stands in the table")
    return value


LabelValue = Annotated[str | int | float, BeforeValidator(_no_yes)]


class Model(BaseModel):
    """A part of the configuration: immutable, and deaf to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# -- cohorts ---------------------------------------------------------------------------------------


class Simulated(Model):
    """A simulated cohort, for trying the benchmark where there is no data."""

    subjects: int = Field(ge=4, description="number of simulated subjects")
    seed: int = Field(default=0, ge=0, description="seed of the simulation")
    site: Literal["A", "B"] = Field(default="A", description="simulated scanner; A and B differ in contrast")
    groups: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={"CN": 0.5, "AD": 0.5}, description="share of each group; CN, AD and PD have planted effects"
    )
    age: tuple[float, float] = Field(default=(50.0, 85.0), description="youngest and oldest age in years")
    scans_per_subject: int = Field(default=1, ge=1, description="sessions of each subject")
    effect: float = Field(default=1.0, ge=0, description="size of the planted disease effects; 0 plants none")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "Simulated":
        if abs(sum(self.groups.values()) - 1) > 1e-6:
            raise ValueError("the shares of `groups` must sum to 1")
        if self.age[0] >= self.age[1]:
            raise ValueError("`age` must be [youngest, oldest]")
        return self


class Synthetic(Model):
    """A synthetic cohort: brains painted on the template grid, to pretrain on."""

    volumes: int = Field(ge=4, description="number of synthetic volumes")
    seed: Seed = Field(default=0, description="seed; more volumes of a seed keep the first ones")


class Cohort(Model):
    """A named set of scans: a BIDS root, a table of paths, a simulated cohort or a synthetic one."""

    bids: str | None = Field(
        default=None, description="BIDS root (participants.tsv, sub-*/[ses-*/]anat/*_T1w.nii[.gz])"
    )
    table: str | None = Field(
        default=None, description="TSV or CSV with a `path` per scan, `subject` and label columns"
    )
    simulated: Simulated | None = Field(default=None, description="simulate this cohort")
    synthetic: Synthetic | None = Field(
        default=None, description="paint this cohort's volumes; for pretraining only"
    )
    columns: dict[str, str] = Field(
        default={},
        description="this cohort's own column names: {name used in tasks: name in the table}",
    )
    skull_strip: Literal["deepbet", "hd-bet", "given", "stripped"] = Field(
        default="deepbet",
        description="how brains are extracted: by a network, from given masks, or not at all",
    )
    brain_masks: str | None = Field(
        default=None,
        description="for `skull_strip: given`: path of a scan's mask, relative to the BIDS root or table, "
        "with {subject}, {session} and {scan_id}",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Cohort":
        sources = (self.bids, self.table, self.simulated, self.synthetic)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("a cohort needs exactly one of `bids`, `table`, `simulated` and `synthetic`")
        if self.synthetic and (self.columns or self.brain_masks or self.skull_strip != "deepbet"):
            raise ValueError(
                "a synthetic cohort has neither tables nor skulls: remove `columns`, `skull_strip` and "
                "`brain_masks`"
            )
        if (self.skull_strip == "given") != (self.brain_masks is not None):
            raise ValueError("`skull_strip: given` and `brain_masks` go together: set both or neither")
        return self


class Preprocessing(Model):
    """How scans become volumes."""

    scans_per_job: int = Field(
        default=32, ge=1, description="scans that one preprocessing job handles at most"
    )
    max_excluded_share: float = Field(
        default=0.05, ge=0, le=1, description="share of a cohort's scans that may fail before the run stops"
    )
    size: int = Field(default=80, ge=16, description="edge of the cube that models see, in voxels")


# -- tasks -----------------------------------------------------------------------------------------


class _Task(Model):
    """What is predicted, on which cohorts."""

    where: dict[str, LabelValue | list[LabelValue]] = Field(
        default={}, description="filter: {column: value or values}; scans with other values are left out"
    )
    train: Name = Field(description="cohort that is split into training, validation and test")
    zero_shot: list[Name] = Field(default=[], description="cohorts that are only ever tested on")

    @model_validator(mode="after")
    def _zero_shot_is_not_trained_on(self) -> "_Task":
        if self.train in self.zero_shot:
            raise ValueError(f"`zero_shot` names the training cohort {self.train!r}: remove it there")
        _check_no_repeats("zero_shot", self.zero_shot)
        return self

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


class MultilabelTask(_Task):
    """Telling which of several labels a scan has; each is present (1), absent (0) or unknown."""

    kind: Literal["multilabel"]
    labels: dict[Name, str] = Field(
        min_length=2, description="{label: column}, whose values are 1, 0, or n/a where it is unknown"
    )
    unit: ClassVar[str] = ""

    @property
    def size(self) -> int:
        """How many labels there are."""
        return len(self.labels)

    @property
    def target_columns(self) -> dict[str, str]:
        """The columns that hold labels, by the key that names each."""
        return {f"labels.{name}": column for name, column in self.labels.items()}


Task = Annotated[BinaryTask | MulticlassTask | RegressionTask | MultilabelTask, Field(discriminator="kind")]


def _check_no_repeats(key: str, names: Sequence[str]) -> None:
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{key}` names {repeated[0]!r} twice: remove one")


def _as_list(value: LabelValue | list[LabelValue]) -> list[LabelValue]:
    return value if isinstance(value, list) else [value]


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


# -- models ----------------------------------------------------------------------------------------


class Decoder(Model):
    """The light decoder of the masked autoencoder."""

    width: int = Field(default=384, ge=6, description="embedding width; the paper does not give it")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")


class ViT(Model):
    """A 3D vision transformer."""

    kind: Literal["vit"]
    width: int = Field(ge=6, description="embedding width")
    depth: int = Field(ge=1, description="number of blocks")
    heads: int = Field(ge=1, description="attention heads")
    mlp_ratio: float = Field(
        default=4.0, gt=0, description="hidden width of the MLP over the embedding width"
    )
    patch_size: int = Field(default=16, ge=1, description="edge of a patch, in voxels")
    decoder: Decoder = Field(description="decoder of the masked autoencoder that pretrains this backbone")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ViT":
        for part, width, heads in (
            ("", self.width, self.heads),
            ("decoder.", self.decoder.width, self.decoder.heads),
        ):
            if width % heads:
                raise ValueError(f"`{part}width` {width} is not divisible by `{part}heads` {heads}")
            if width % 6:
                raise ValueError(
                    f"`{part}width` {width} is not divisible by 6, which 3D sin-cos positions need"
                )
        return self


class DenseNet121(Model):
    """MONAI's 3D DenseNet121, the paper's reference CNN."""

    kind: Literal["densenet121"]


Backbone = Annotated[ViT | DenseNet121, Field(discriminator="kind")]


class Augment(Model):
    """Random changes to training volumes, drawn anew for each batch on the device."""

    flip: bool = Field(default=False, description="swap left and right in half of the volumes")
    rotate_deg: float = Field(default=0.0, ge=0, description="largest rotation about each axis, degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest relative change of size")
    translate_voxels: float = Field(default=0.0, ge=0, description="largest shift along each axis, voxels")
    intensity: float = Field(
        default=0.0, ge=0, description="largest relative scaling, and shift, of the intensities"
    )
    noise: float = Field(default=0.0, ge=0, description="standard deviation of added Gaussian noise")
    contrast: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="largest bend of the curve that maps intensities: tissue contrast",
    )
    sharpness: float = Field(
        default=0.0, ge=0, description="largest weight, up or down, of the detail within 3 voxels: resolution"
    )
    bias: float = Field(
        default=0.0,
        ge=0,
        description="largest logarithm of a smooth field that intensities are multiplied with",
    )


class _Schedule(Model):
    epochs: int = Field(ge=1)
    warmup_epochs: int = Field(ge=0, description="epochs over which the learning rate rises to its peak")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "_Schedule":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"`warmup_epochs` {self.warmup_epochs} must be fewer than `epochs` {self.epochs}"
            )
        return self


class _Trained(Model):
    """What pretrainings on a cohort share; budgets are in steps, so that a larger cohort costs no more."""

    cohort: Name = Field(
        description="cohort to pretrain on; test subjects of tasks trained on it are left out"
    )
    start: Name | None = Field(
        default=None, description="another pretraining, from whose encoder this one goes on"
    )
    steps: int = Field(
        default=75_000, ge=1, description="steps; the paper's 1,000 epochs of 38,703 scans are 75,000"
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="steps over which the learning rate rises to its peak; 4 % of all if absent, as in the "
        "paper",
    )
    batch_size: int = Field(default=512, ge=1, description="scans per step, over all processes")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    validation_share: Share = Field(
        default=0.05, description="share of the subjects that only the loss curve sees"
    )
    seed: Seed = 0
    mixed_precision: bool = Field(default=True, description="bfloat16 autocast, on a GPU")
    compile: bool = Field(default=False, description="torch.compile the model")

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "_Trained":
        if self.warmup >= self.steps:
            raise ValueError(f"`warmup_steps` {self.warmup} must be fewer than `steps` {self.steps}")
        return self

    @property
    def warmup(self) -> int:
        """The steps of the warm-up, given or not."""
        return self.steps * 4 // 100 if self.warmup_steps is None else self.warmup_steps


class MaskedAutoencoder(_Trained):
    """Masked-autoencoder pretraining on a cohort (He 2022; Dhinagar 2024, section 3.2)."""

    kind: Literal["mae"] = "mae"
    mask_ratio: Share = Field(default=0.75, description="share of the patches that is hidden")
    mask: Literal["all", "foreground"] = Field(
        default="all",
        description="which patches are shown or hidden: all, as in the paper, or those that hold brain in "
        "most scans; a third of the visible ones is background otherwise",
    )
    normalize_targets: bool = Field(default=True, description="standardise each target patch")
    augment: Augment = Augment(flip=True)


class Factors(_Trained):
    """Pretraining on a synthetic cohort: reading the known anatomy of its brains."""

    kind: Literal["factors"]
    augment: Augment = Augment()


class ImportedWeights(Model):
    """Weights of a ViT that was pretrained elsewhere."""

    weights: str = Field(
        description="a PyTorch checkpoint of MONAI's ViT or MaskedAutoEncoderViT, or an encoder.safetensors "
        "of this workflow"
    )

    @model_validator(mode="before")
    @classmethod
    def _not_trained(cls, value: object) -> object:
        others = [str(key) for key in value if key != "weights"] if isinstance(value, Mapping) else []
        if others:
            raise ValueError(f"weights that are there are not trained: remove {', '.join(others)}")
        return value


def _kind_of_pretraining(value: object) -> str:
    if isinstance(value, ImportedWeights) or (isinstance(value, Mapping) and "weights" in value):
        return "imported"
    kind = value.get("kind", "mae") if isinstance(value, Mapping) else getattr(value, "kind", "mae")
    return str(kind)


Trained = MaskedAutoencoder | Factors
Pretraining = Annotated[
    Annotated[MaskedAutoencoder, Tag("mae")]
    | Annotated[Factors, Tag("factors")]
    | Annotated[ImportedWeights, Tag("imported")],
    Discriminator(_kind_of_pretraining),
]


class _Method(Model):
    lr: float = Field(gt=0, description="peak learning rate")
    head_lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of a head of 768 inputs, in inverse proportion for others; that of "
        "`lr` if absent",
    )
    weight_decay: float = Field(default=0.0, ge=0)
    shuffle_labels: bool = Field(default=False, description="control: train and validate on permuted labels")


class Scratch(_Method):
    """Train everything from random weights."""

    kind: Literal["scratch"]


class Full(_Method):
    """Fine-tune everything."""

    kind: Literal["full"]
    layer_decay: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="factor on the learning rate from each block to the one below it (He 2022, table 9)",
    )


class Attention(_Method):
    """Fine-tune qkv and output projection of every block (Dhinagar 2024, Table 1)."""

    kind: Literal["attention"]


class LayerNorm(_Method):
    """Fine-tune every LayerNorm (Dhinagar 2024, Table 1)."""

    kind: Literal["layernorm"]


class LoRA(_Method):
    """Low-rank adaptation (Hu 2022): W + alpha/r * B A."""

    kind: Literal["lora"]
    r: int = Field(default=32, ge=1, description="rank")
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / r")
    targets: list[Literal["q", "k", "v", "proj", "fc1", "fc2"]] = Field(default=["q", "v"], min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _targets_once(self) -> "LoRA":
        _check_no_repeats("targets", self.targets)
        return self


Method = Annotated[Scratch | Full | Attention | LayerNorm | LoRA, Field(discriminator="kind")]


class Search(Model):
    """A small search of learning rates, the same for every method; validation chooses."""

    lr: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.3, 1.0, 3.0], min_length=1, description="factors on the method's `lr` to try"
    )
    head_lr: list[Annotated[float, Field(gt=0)]] = Field(
        default=[1.0], min_length=1, description="factors on its `head_lr` to try with each of them"
    )
    share: float = Field(default=0.25, gt=0, le=1, description="of a cell's steps, for each candidate")


class Training(_Schedule):
    """What all fine-tunes share (Dhinagar 2024, section 3.2)."""

    epochs: int = Field(
        default=50,
        ge=1,
        description="passes over all training scans; smaller fractions train for as many steps",
    )
    min_steps: int = Field(default=0, ge=0, description="steps at least, for cohorts of few scans")
    batch_size: int = Field(default=16, ge=1)
    warmup_epochs: int = Field(default=5, ge=0)
    patience: int = Field(
        default=10,
        ge=1,
        description="validations, one an epoch, without a better loss before it stops; those of the warm-up "
        "do not count",
    )
    min_validation: int = Field(
        default=50,
        ge=1,
        description="validation subjects that it takes to choose an epoch; with fewer, the loss is noise and "
        "the last weights are kept",
    )
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    pool: Literal["mean", "attentive", "concat"] = Field(
        default="mean",
        description="how tokens become features: their mean, as in the paper; averages by a few learned "
        "queries; or all of them, each reduced by one shared projection",
    )
    feature_norm: Literal["fixed", "refreshed", "layer"] = Field(
        default="fixed",
        description="how features are standardised: by the training scans' statistics before the first step; "
        "by those of each validation; or by a trained LayerNorm (MAE's fc_norm)",
    )
    head_start: Literal["random", "probe"] = Field(
        default="random",
        description="what the head starts as: random, as in the paper, or the linear probe of the frozen "
        "features",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth of the last block")
    augment: Augment = Augment()
    search: Search | None = Field(
        default=None, description="learning rates to try first; none are tried if absent"
    )
    mixed_precision: bool = Field(default=True, description="bfloat16 autocast, on a GPU")
    compile: bool = Field(default=False, description="torch.compile the model")


# -- the grid --------------------------------------------------------------------------------------


class Block(Model):
    """A product of choices; the grid is the union of its blocks' valid cells."""

    tasks: list[Name] = Field(min_length=1)
    backbones: list[Name] = Field(min_length=1)
    methods: list[Name] = Field(min_length=1)
    pretraining: list[Name] = Field(
        default=[],
        description="weights that methods other than scratch start from; `none` leaves them random",
    )
    fractions: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[100], min_length=1, description="percent of the training and of the validation subjects"
    )
    seeds: list[Seed] = Field(min_length=1)


class Figures(Model):
    """Choices of the figures."""

    tradeoff_fraction: int = Field(
        default=10, ge=1, le=100, description="fraction that figure 1 shows, percent"
    )


class Config(Model):
    """The whole configuration."""

    cohorts: dict[Name, Cohort] = Field(min_length=1)
    preprocessing: Preprocessing = Preprocessing()
    tasks: dict[Name, Task] = Field(min_length=1)
    splits: Splits = Splits()
    backbones: dict[Name, Backbone] = Field(min_length=1)
    pretraining: dict[Name, Pretraining] = {}
    methods: dict[Name, Method] = Field(min_length=1)
    training: Training = Training()
    cells_per_job: int = Field(
        default=16, ge=1, le=64, description="most cells that one fine-tune job trains, one after another"
    )
    grid: list[Block] = Field(min_length=1)
    figures: Figures = Figures()

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

    @model_validator(mode="after")
    def _patches_stay_visible(self) -> "Config":
        vits = {name: value for name, value in self.backbones.items() if isinstance(value, ViT)}
        masked = {name: value for name, value in self.trained.items() if isinstance(value, MaskedAutoencoder)}
        for (name, vit), (other, autoencoder) in itertools.product(vits.items(), masked.items()):
            patches = (self.preprocessing.size // vit.patch_size) ** 3
            if patches * (1 - autoencoder.mask_ratio) < 1:
                raise ValueError(
                    f"`pretraining.{other}.mask_ratio` {autoencoder.mask_ratio} hides all of the {patches} "
                    f"patches of `backbones.{name}`: give a lower one or a smaller `patch_size`"
                )
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        for name, task in self.tasks.items():
            _known(f"tasks.{name}.train", [task.train], self.cohorts)
            _known(f"tasks.{name}.zero_shot", task.zero_shot, self.cohorts)
        for name, trained in self.trained.items():
            _known(f"pretraining.{name}.cohort", [trained.cohort], self.cohorts)
            if trained.kind == "factors" and self.cohorts[trained.cohort].synthetic is None:
                raise ValueError(
                    f"`pretraining.{name}.cohort` is {trained.cohort!r}, whose anatomy nobody knows: kind "
                    "factors needs a synthetic cohort"
                )
            if trained.start is not None:
                _known(f"pretraining.{name}.start", [trained.start], self.pretraining)
            if name in self.starts(name)[1:]:
                raise ValueError(f"`pretraining.{name}.start` leads back to {name!r}: give another start")
        for index, block in enumerate(self.grid):
            for key in ("tasks", "backbones", "methods", "pretraining"):
                known = [*getattr(self, key), "none"] if key == "pretraining" else getattr(self, key)
                _known(f"grid.{index}.{key}", getattr(block, key), known)
        for name, backbone in self.backbones.items():
            if isinstance(backbone, ViT) and self.preprocessing.size % backbone.patch_size:
                raise ValueError(
                    f"`backbones.{name}.patch_size` {backbone.patch_size} does not divide "
                    f"`preprocessing.size` {self.preprocessing.size}: change one of them"
                )
            if isinstance(backbone, DenseNet121) and self.preprocessing.size < SMALLEST_OF_DENSENET:
                raise ValueError(
                    f"`backbones.{name}` halves a volume five times and needs a `preprocessing.size` of at "
                    f"least {SMALLEST_OF_DENSENET}, not {self.preprocessing.size}"
                )
        return self

    def starts(self, pretraining: str) -> list[str]:
        """Return a pretraining, the one that it goes on from, and so on, up to one that comes again."""
        found = [pretraining]
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

    @property
    def trained(self) -> dict[str, Trained]:
        """The pretrainings that the workflow does itself."""
        return {name: value for name, value in self.pretraining.items() if isinstance(value, Trained)}

    @property
    def imported(self) -> dict[str, ImportedWeights]:
        """The pretrainings whose weights are there already."""
        return {name: value for name, value in self.pretraining.items() if isinstance(value, ImportedWeights)}


def _known(key: str, names: list[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"`{key}` names {name!r}, which is not there; {suggest(name, known)}")
