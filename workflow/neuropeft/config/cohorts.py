"""Cohorts, and how their scans become arrays."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuropeft.config.base import Model, Seed
from neuropeft.config.inputs import Input, T1w


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
    input: Input = Field(default=T1w(), description="kind of its files, by its name or with its settings")
    columns: dict[str, str] = Field(
        default={},
        description="this cohort's own column names: {name used in tasks: name in the table}",
    )
    skull_strip: Literal["deepbet", "hd-bet", "given", "stripped"] = Field(
        default="deepbet",
        description="how brains are extracted: by a network, from given masks, or not at all",
    )
    morphometry: str | None = Field(
        default=None,
        description="TSV or CSV of region volumes, for a control: `subject`, `session` where there are "
        "several, and a column of numbers per region",
    )
    brain_masks: str | None = Field(
        default=None,
        description="for `skull_strip: given`: path of a scan's mask, relative to the BIDS root or table, "
        "with {subject}, {session} and {scan_id}",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Cohort":
        every = ("bids", "table", "simulated", "synthetic")
        sources = [key for key in every if getattr(self, key) is not None]
        if len(sources) != 1:
            raise ValueError("a cohort needs exactly one of `bids`, `table`, `simulated` and `synthetic`")
        if sources[0] not in self.input.sources:
            raise ValueError(
                f"`input: {self.input.kind}` cannot come from `{sources[0]}`: give "
                + " or ".join(f"`{key}`" for key in self.input.sources)
            )
        if not isinstance(self.input, T1w) and (self.brain_masks or self.skull_strip != "deepbet"):
            raise ValueError("`skull_strip` and `brain_masks` are for `input: t1w`: remove them")
        other = self.columns or self.brain_masks or self.morphometry or self.skull_strip != "deepbet"
        if self.synthetic and other:
            raise ValueError(
                "a synthetic cohort has neither tables nor skulls: remove `columns`, `morphometry`, "
                "`skull_strip` and `brain_masks`"
            )
        if (self.skull_strip == "given") != (self.brain_masks is not None):
            raise ValueError("`skull_strip: given` and `brain_masks` go together: set both or neither")
        return self


class Preprocessing(Model):
    """How scans become arrays."""

    scans_per_job: int = Field(
        default=32, ge=1, description="scans that one preprocessing job handles at most"
    )
    max_excluded_share: float = Field(
        default=0.05, ge=0, le=1, description="share of a cohort's scans that may fail before the run stops"
    )
    size: int = Field(default=80, ge=16, description="edge of what models see, in voxels or pixels")
