"""Several methods on one network, and those of another library."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from neuropeft.config.base import Name, check_no_repeats
from neuropeft.config.methods.base import MethodSettings, Start
from neuropeft.errors import suggest


class Combined(MethodSettings):
    """Methods of this configuration, one after another on the same network; each keeps its settings."""

    label: ClassVar[str] = "Combined"
    kind: Literal["combined"] = "combined"
    combine: list[Name] = Field(
        min_length=2, description="names of the methods, in the order that they go in"
    )
    parts: SkipJsonSchema[list[SerializeAsAny[MethodSettings]]] = Field(
        default=[], description="their settings, which the configuration fills in"
    )
    # What is absent is the first part's.
    lr: float = Field(
        default=0.0,
        gt=0,
        description="peak learning rate of the first method, its own if absent; the others keep their ratio",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="of the head; that of the first method if absent"
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _made_anew(cls, parts: Any, info: ValidationInfo) -> Any:
        """Drop the parts in a job's copy, which alone is JSON: they are made of `combine` again."""
        return [] if info.mode == "json" else parts

    @property
    def family(self) -> str:  # type: ignore[override]
        """The first part's."""
        return self.parts[0].family

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What any part needs."""
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def start(self) -> Start:  # type: ignore[override]
        """The start of a part that does not take either."""
        return next((part.start for part in self.parts if part.start != "either"), "either")

    @property
    def changes_at_start(self) -> str:  # type: ignore[override]
        """The first reason that a part gives."""
        return next((part.changes_at_start for part in self.parts if part.changes_at_start), "")

    def resolved(self, name: str, methods: Mapping[str, MethodSettings]) -> "Combined":
        """Return these settings with those of the parts.

        Args:
            name: What the configuration calls this combination, for errors.
            methods: All methods of the configuration.

        Raises:
            ValueError: A part is not there, cannot be one, or starts from other weights than another part.
        """
        check_no_repeats(f"{name}.combine", self.combine)
        for part in self.combine:
            if part not in methods:
                raise ValueError(
                    f"`{name}.combine` names {part!r}, which is not there; {suggest(part, methods)}"
                )
            if isinstance(methods[part], Combined) or methods[part].shuffle_labels:
                raise ValueError(
                    f"`{name}.combine` names {part!r}, a combination or a control: name plain methods"
                )
        parts = [methods[part] for part in self.combine]
        if len(starts := {part.start for part in parts} - {"either"}) > 1:
            raise ValueError(
                f"`{name}.combine` starts from {' and from '.join(sorted(starts))}: leave a method out"
            )
        shared = {key: getattr(parts[0], key) for key in ("lr", "head_lr", "weight_decay")}
        return Combined.model_validate({**shared, **self.model_dump(exclude_unset=True), "parts": parts})


def with_kind(value: Any) -> Any:
    """Return the settings of a method with their kind: `combine` says enough."""
    return {"kind": "combined", **value} if isinstance(value, Mapping) and "combine" in value else value
