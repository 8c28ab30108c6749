"""ResNet-50 in 2D: the layers, and names of parameters, of torchvision's, so that ImageNet weights fit."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from neuropeft.backbones.base import SIZE
from neuropeft.backbones.images import Standardise
from neuropeft.backbones.resnet50 import ResNet50


class ResNet50In2D(ResNet50):
    """MONAI's ResNet-50 of standardised images, whose bottlenecks stride in the 3 x 3 convolution."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {"conv": nn.Conv2d, "batchnorm": nn.BatchNorm2d}
    KIND: ClassVar[str] = "resnet50_2d"
    DIMS: ClassVar[int] = 2

    def __init__(
        self,
        size: int,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        sd: Sequence[float] | None = None,
    ) -> None:
        """Make a randomly initialised network for images of this edge; see `Standardise`."""
        super().__init__(size, channels)
        self.standardise = Standardise(channels, mean, sd)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the last feature map of images [B, C, H, W], place by place: [B, N, 2048]."""
        return super().tokens(self.standardise(x))

    def architecture(self) -> dict[str, Any]:
        """Return what weights must share to fit, at any size of images."""
        return {**super().architecture(), "channels": self.takes.channels, **self.standardise.values}


def build(settings: Mapping[str, Any]) -> ResNet50In2D:
    """Return a randomly initialised network for images of edge `image_size`."""
    shape = {key: settings[key] for key in ("channels", "mean", "sd") if key in settings}
    return ResNet50In2D(int(settings.get("image_size", SIZE)), **shape)
