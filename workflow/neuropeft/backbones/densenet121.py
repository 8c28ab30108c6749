"""DenseNet121 in 3D, from MONAI, without its classification layer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from neuropeft.backbones.base import SIZE, Backbone, FeatureSpec, InputSpec, MapSpec

WIDTH = 1024
HALVINGS = 5  # of a scan's edge up to the last feature map
# The module that gives each feature map, and its channels.
MAPS = {"relu0": 64, "denseblock1": 256, "denseblock2": 512, "denseblock3": 1024, "norm5": WIDTH}


class DenseNet121(Backbone):
    """MONAI's DenseNet121 up to the pooled features, 1024 a scan."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {"conv": nn.Conv3d, "batchnorm": nn.BatchNorm3d}
    LAST_STAGE: ClassVar[tuple[str, ...]] = ("features.denseblock4", "features.norm5")

    def __init__(self, size: int) -> None:
        """Make a randomly initialised network for scans of this edge; imports MONAI, which takes seconds."""
        super().__init__()
        from monai.networks.nets.densenet import DenseNet121 as Monai

        self.takes = InputSpec(3, 1, size)
        self.gives = FeatureSpec(WIDTH, (size // 2**HALVINGS,) * 3)
        self.gives_maps = tuple(MapSpec(width, 2**level) for level, width in enumerate(MAPS.values(), 1))
        self.features = Monai(spatial_dims=3, in_channels=1, out_channels=1).features

    def tokens(self, x: Tensor) -> Tensor:
        """Return the last feature map of scans [B, 1, S, S, S], place by place: [B, N, 1024]."""
        return self.features(x).relu().flatten(2).transpose(1, 2)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what the stages make of scans, each at half the resolution of the one before."""
        found = []
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in MAPS:
                found.append(x.relu() if name == "norm5" else x)
        return found

    def architecture(self) -> dict[str, Any]:
        """Return what weights must share to fit: the kind alone, at any size of scans."""
        return {"kind": "densenet121"}


def build(settings: Mapping[str, Any]) -> DenseNet121:
    """Return a randomly initialised network for scans of edge `image_size`."""
    return DenseNet121(int(settings.get("image_size", SIZE)))
