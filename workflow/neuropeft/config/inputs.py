"""Kinds of input: what a cohort's files are and become."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from neuropeft.config.base import Model, check_no_repeats


class _Input(Model):
    """What all kinds of input share.

    Attributes:
        steps: {step: module}, in their order: each takes the scans of a chunk further and writes the chunk
            table of its name.
        sources: the keys of a cohort that may say where such files lie.
        mask_column: the column of a cohort's table that names a scan's mask, if tables may have one.
        same: correlation of two signatures (`InputKind.signature`) from which on they are of one scan.
        dims: axes of its arrays beside their channels.
    """

    steps: ClassVar[Mapping[str, str]]
    sources: ClassVar[tuple[str, ...]]
    mask_column: ClassVar[str | None] = None
    # Measured at 80³: two people never reached 0.83 (92 of IXI, 29 of ds002748; 7,260 pairs) and two
    # simulated ones never 0.92; scans of IXI prepared on one core and on two stay above 0.9999, and above
    # 0.996 with other axes and coarsely rounded intensities. One that was resampled to another grid, 0.93 to
    # 0.98, is not found.
    same: ClassVar[float] = 0.985
    dims: ClassVar[int] = 3

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """Return what its steps are told of a cohort's settings, and of the edge of its arrays, `size`."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Channels of its arrays."""
        return 1

    @property
    def last_step(self) -> str:
        """The step whose chunk tables the store is made from."""
        return list(self.steps)[-1]

    @property
    def provides(self) -> frozenset[str]:
        """What backbones and tasks may need of it."""
        return frozenset({f"{self.dims}D", "one channel" if self.depth == 1 else f"{self.depth} channels"})

    def shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of its arrays [channels, *size] at an edge of `size` voxels or pixels."""
        return (self.depth, *[size] * self.dims)


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
    channels: int = Field(default=1, ge=1, le=16, description="volumes of a 4D file, one a channel")
    spacing: float | None = Field(
        default=None,
        gt=0,
        description="edge of a voxel in mm that images are resampled to, and then cut or padded to the cube; "
        "without it they keep their voxels, and are shrunk if they are too large",
    )
    zscore: Literal["image", "foreground"] = Field(
        default="image",
        description="voxels by which a channel is z-scored: all, or those that are not 0, and 0 stays 0",
    )
    window: tuple[float, float] | None = Field(
        default=None,
        description="lowest and highest value that count, such as [-160, 240] HU of CT; they become -1 and "
        "1, and nothing is z-scored",
    )
    labels: list[Annotated[int, Field(ge=1, le=255)]] = Field(
        default=[],
        description="what label maps may hold beside 0; the column `label` names the map of each scan",
    )

    @model_validator(mode="after")
    def _intensities_are_one_thing(self) -> "Volume":
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("`window` must be [lowest, highest]")
        if self.window is not None and self.zscore != "image":
            raise ValueError("with a `window` nothing is z-scored: remove `zscore`")
        check_no_repeats("labels", [str(value) for value in self.labels])
        return self

    @property
    def mask_column(self) -> str | None:  # type: ignore[override]
        """The column of label maps, if they are used."""
        return "label" if self.labels else None

    @property
    def depth(self) -> int:
        """Channels of its arrays."""
        return self.channels

    @property
    def provides(self) -> frozenset[str]:
        """Label maps, beside what all kinds provide."""
        return super().provides | ({"label maps"} if self.labels else frozenset())

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """The cubes that images are put into, and what of it is not as it is by default."""
        return {"size": size, **self.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)}


class Image(_Input):
    """2D images, photographs and radiographs: put into a square with their aspect kept, 0 to 1."""

    steps: ClassVar[Mapping[str, str]] = {"prepare_images": "inputs.image"}
    sources: ClassVar[tuple[str, ...]] = ("table",)
    mask_column: ClassVar[str | None] = "mask"
    # Measured at 224²: an image that is stored anew stays above 0.9 (JPEG of quality 50 or more, half or
    # twice the size, grey, another gamma or contrast). Those of different people stay below 0.84
    # (radiographs, ultrasound, dermoscopy, slices of brains; the most alike are fundus photographs by one
    # camera). One whose black is raised or that is cut to other borders, and frames of a sequence, lie
    # anywhere between: they are not all found.
    same: ClassVar[float] = 0.9
    dims: ClassVar[int] = 2
    kind: Literal["image"] = "image"
    channels: Literal[1, 3] = Field(
        default=3, description="3: grey becomes three equal channels; 1: colours become their luminance"
    )
    fit: Literal["pad", "crop"] = Field(
        default="pad",
        description="how an image fills its square: whole, with black beside it, or with its middle",
    )
    labels: list[Annotated[int, Field(ge=1, le=255)]] = Field(
        default=[],
        description="what masks may hold beside 0, such as [255]; without it they are checked, not learnt",
    )
    threshold: int | None = Field(
        default=None,
        ge=0,
        lt=255,
        description="of masks with soft borders, as resized files have: what is above becomes the one label, "
        "all else 0",
    )

    @model_validator(mode="after")
    def _a_threshold_makes_one_label(self) -> "Image":
        check_no_repeats("labels", [str(label) for label in self.labels])
        if self.threshold is not None and len(self.labels) != 1:
            raise ValueError("a `threshold` makes one label of a mask: give one in `labels`, or remove it")
        return self

    @property
    def depth(self) -> int:
        """Channels of its arrays."""
        return self.channels

    @property
    def provides(self) -> frozenset[str]:
        """Label maps, beside what all kinds provide."""
        return super().provides | ({"label maps"} if self.labels else frozenset())

    def told(self, cohort: Any, size: int) -> dict[str, Any]:
        """The squares that images are put into, and the values of label maps."""
        told = {"size": size, "channels": self.channels, "fit": self.fit}
        return told | self.model_dump(include={"labels", "threshold"}, exclude_defaults=True)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Kind = Annotated[T1w | Volume | Image, Field(discriminator="kind")]
# A kind may be given by its name alone.
Input = Annotated[
    Kind, BeforeValidator(_named, json_schema_input_type=Literal["t1w", "volume", "image"] | Kind)
]
