"""What else is asked of the cells once they are trained; none of it is, unless it is asked for."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from neuropeft.config.base import Model

Changed = Literal["noise", "bias", "contrast", "rotate_deg"]
LARGEST = {"contrast": 1, "rotate_deg": 90}  # beyond it, the curve that maps intensities is not monotone


class Analyses(Model):
    """Questions that trained cells answer without another training; of regions, which have none, no task."""

    ensembles: bool = Field(
        default=False,
        description="score the mean prediction of the seeds of each method, and of all methods of a start",
    )
    interpolation: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[],
        description="score networks between the start (0) and the fine-tuned weights (1), such as "
        "[0, 0.25, 0.5, 0.75, 1]",
    )
    robustness: dict[Changed, list[Annotated[float, Field(gt=0)]]] = Field(
        default={},
        description="score test scans that are changed, each kind by several strengths; units are those of "
        "`augment`, such as {noise: [0.1, 0.2, 0.4], rotate_deg: [2, 5, 10]}",
    )

    retest: bool = Field(
        default=False,
        description="compare predictions of the first two scans of each test subject who has them",
    )

    saliency: int = Field(
        default=0,
        ge=0,
        description="test scans of each cell whose gradients are averaged in template space, such as 30; T1w "
        "alone",
    )

    @field_validator("interpolation")
    @classmethod
    def _in_order(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("`analyses.interpolation` must rise: sort it, and name each share once")
        return value

    @field_validator("robustness")
    @classmethod
    def _strengths(cls, value: dict[Changed, list[float]]) -> dict[Changed, list[float]]:
        for kind, strengths in value.items():
            if strengths != sorted(set(strengths)):
                raise ValueError(f"`analyses.robustness.{kind}` must rise: sort it, and name each once")
            if strengths and strengths[-1] > LARGEST.get(kind, strengths[-1]):
                raise ValueError(
                    f"`analyses.robustness.{kind}` is {strengths[-1]:g}: give at most {LARGEST[kind]}"
                )
        return value
