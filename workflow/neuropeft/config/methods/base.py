"""What the settings of all methods share."""

from typing import ClassVar, Literal

from pydantic import Field

from neuropeft.config.base import Kind

Start = Literal["none", "weights", "either"]


class MethodSettings(Kind):
    """What all methods share.

    Attributes:
        family: What it has in common with others, which share a colour in figures.
        needs: What a backbone must provide, for the method to attach to it.
        start: Which weights it starts from: `none`, so random ones, pretrained `weights`, or `either`, where
            what it makes of random weights is its untrained twin.
        changes_at_start: Why an adapted network does not start as the plain one; empty if it does.
        is_control: Whether it is no method to choose.
    """

    family: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    start: ClassVar[Start] = "either"
    changes_at_start: ClassVar[str] = ""
    is_control: ClassVar[bool] = False
    lr: float = Field(gt=0, description="peak learning rate")
    head_lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of a head of 768 inputs, in inverse proportion for others; that of "
        "`lr` if absent",
    )
    weight_decay: float = Field(default=0.0, ge=0)
    shuffle_labels: bool = Field(default=False, description="control: train and validate on permuted labels")
