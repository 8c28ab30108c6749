"""What the grid combines, and choices of the figures."""

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
    fractions: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[100], min_length=1, description="percent of the training and of the validation subjects"
    )
    seeds: list[Seed] = Field(min_length=1)


class Figures(Model):
    """Choices of the figures."""

    tradeoff_fraction: int = Field(
        default=10, ge=1, le=100, description="fraction that figure 1 shows, percent"
    )
