"""What the parts of a configuration share."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Model(BaseModel):
    """A part of the configuration: immutable; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check_no_repeats(key: str, names: Sequence[str]) -> None:
    """Raise `ValueError` if a list of the key names something twice."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{key}` names {repeated[0]!r} twice: remove one")
