"""What the parts of a configuration share."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Model(BaseModel):
    """A part of the configuration: immutable; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Kind(Model):
    """Settings of a kind of something."""

    label: ClassVar[str]  # what tables and figures call it

    @classmethod
    def kind_name(cls) -> str:
        """The name of the kind."""
        return get_args(cls.model_fields["kind"].annotation)[0]

    @classmethod
    def label_of(cls, name: str) -> str:
        """Return what tables call the one that the configuration calls `name`: a name of its own counts."""
        return cls.label if name == cls.kind_name() else name


def check_no_repeats(key: str, names: Sequence[str]) -> None:
    """Raise `ValueError` if a list of the key names something twice."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{key}` names {repeated[0]!r} twice: remove one")


def label_of_kind(kinds: Any, name: str) -> str:
    """Return what tables call a backbone or a method of a name that begins with its kind.

    Args:
        kinds: the union of the settings classes, such as `Method`.
        name: such as `vit_b` or `lora`; it is its own label if it begins with no kind.
    """
    classes = {one.kind_name(): one for one in get_args(get_args(kinds)[0])}
    fitting = [kind for kind in classes if f"{name}_".startswith(f"{kind}_")]
    return classes[max(fitting, key=len)].label_of(name) if fitting else name
