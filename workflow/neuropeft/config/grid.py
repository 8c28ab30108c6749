"""What the grid combines, and choices of the figures and of the statistics."""

from typing import Annotated

from pydantic import Field

from neuropeft.config.base import Model, Name, Seed


class Block(Model):
    """A product of choices; the grid is the union of its blocks' valid cells."""

    tasks: list[Name] = Field(min_length=1)
    backbones: list[Name] = Field(min_length=1)
    methods: list[Name] = Field(min_length=1)
    pretraining: list[Name] = Field(
        default=[],
        description="weights that methods other than scratch start from; `none` leaves them random",
    )
    fractions: list[Annotated[int, Field(ge=1, le=100)]] | None = Field(
        default=None,
        min_length=1,
        description="percent of the training and of the validation subjects; 100 if there are no shots",
    )
    shots: list[Annotated[int, Field(ge=1)]] = Field(
        default=[],
        description="training subjects of each class, of each quantile bin of a value, or of each rarest "
        "label; as large a part of the validation subjects comes along",
    )
    seeds: list[Seed] = Field(min_length=1)


class Figures(Model):
    """Choices of the figures."""

    tradeoff_fraction: int = Field(
        default=10, ge=1, le=100, description="fraction that figure 1 shows, percent"
    )
    backbones: list[Name] = Field(
        default=[],
        description="backbones of table and figure 3 (the first) and of table 4 and figure 2 (the others); "
        "all further ones stand beside them. Those that start from pretrained weights, if absent",
    )


class Statistics(Model):
    """Choices of the statistics."""

    reference: Name | None = Field(
        default=None,
        description="the method that others are compared with; full fine-tuning, if absent",
    )
    equivalence: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="across tasks, differences up to this are practically none: of an AUC, or of an error "
        "over that of predicting the mean",
    )
