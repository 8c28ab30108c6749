"""Kinds of input: what a cohort's files are and become."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from neuropeft.config.base import Model


class _Input(Model):
    """What all kinds of input share.

    Attributes:
        steps: {step: module}, in their order: each takes the scans of a chunk further and writes the chunk
            table of its name.
        sources: the keys of a cohort that may say where such files lie.
        dims: axes of its arrays ...
        channels: ... beside their channels.
    """

    steps: ClassVar[Mapping[str, str]]
    sources: ClassVar[tuple[str, ...]]
    dims: ClassVar[int] = 3
    channels: ClassVar[int] = 1

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """Return what its steps are told of a cohort's settings, and of the edge of its cubes, `size`."""
        raise NotImplementedError

    @property
    def last_step(self) -> str:
        """The step whose chunk tables the store is made from."""
        return list(self.steps)[-1]

    @property
    def provides(self) -> frozenset[str]:
        """What backbones and tasks may need of it."""
        return frozenset(
            {f"{self.dims}D", "one channel" if self.channels == 1 else f"{self.channels} channels"}
        )

    def shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of its arrays [channels, *size] at an edge of `size` voxels."""
        return (self.channels, *[size] * self.dims)


class T1w(_Input):
    """T1-weighted brain MRI: bias-corrected, skull-stripped, registered to MNI152, a cube."""

    steps: ClassVar[Mapping[str, str]] = {
        "n4": "inputs.t1w.n4",
        "skull_strip": "inputs.t1w.skullstrip",
        "register": "inputs.t1w.register",
        "resample": "inputs.t1w.resample",
    }
    sources: ClassVar[tuple[str, ...]] = ("bids", "table", "simulated", "synthetic")
    kind: Literal["t1w"] = "t1w"

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """How brains are found."""
        return {"skull_strip": cohort.skull_strip}


class Volume(_Input):
    """3D images that are cut out and turned already: put into a cube as they are, z-scored."""

    steps: ClassVar[Mapping[str, str]] = {"prepare_volumes": "inputs.volume"}
    sources: ClassVar[tuple[str, ...]] = ("table",)
    kind: Literal["volume"] = "volume"

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """The cubes that images are put into."""
        return {"size": size}


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Kind = Annotated[T1w | Volume, Field(discriminator="kind")]
# A kind may be given by its name alone.
Input = Annotated[Kind, BeforeValidator(_named, json_schema_input_type=Literal["t1w", "volume"] | Kind)]
