"""ResNet-50 (He et al. 2016) in 3D, from MONAI, without its classification layer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from neuropeft.backbones.base import SIZE, Backbone, FeatureSpec, InputSpec, MapSpec

WIDTH = 2048
STAGES = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
MAPS = {"act": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": WIDTH}  # as of DenseNet121
STEP = 32  # voxels between the places of the last feature map; they start at the edge


class ResNet50(Backbone):
    """MONAI's ResNet-50 up to the last feature map, its first convolution with He's stride of 2."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {"conv": nn.Conv3d, "batchnorm": nn.BatchNorm3d}
    LAST_STAGE: ClassVar[tuple[str, ...]] = ("network.layer4",)
    KIND: ClassVar[str] = "resnet50"
    DIMS: ClassVar[int] = 3

    def __init__(self, size: int, channels: int = 1) -> None:
        """Make a randomly initialised network for scans of this edge; imports MONAI, which takes seconds."""
        super().__init__()
        from monai.networks.nets.resnet import resnet50

        self.takes = InputSpec(self.DIMS, channels, size)
        self.gives = FeatureSpec(WIDTH, (-(-size // STEP),) * self.DIMS)
        self.gives_maps = tuple(MapSpec(width, 2**level) for level, width in enumerate(MAPS.values(), 1))
        self.network = resnet50(
            spatial_dims=self.DIMS,
            n_input_channels=channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,  # a batch norm follows, which would undo it
        )

    def tokens(self, x: Tensor) -> Tensor:
        """Return the last feature map of scans [B, C, *S], place by place: [B, N, 2048]."""
        return self.maps(x)[-1].flatten(2).transpose(1, 2)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return what the stages make of scans, each at half the resolution of the one before."""
        found = []
        for stage in STAGES:
            x = getattr(self.network, stage)(x)
            if stage in MAPS:
                found.append(x)
        return found

    def architecture(self) -> dict[str, Any]:
        """Return what weights must share to fit: the kind alone, at any size of scans."""
        return {"kind": self.KIND}


def build(settings: Mapping[str, Any]) -> ResNet50:
    """Return a randomly initialised network for scans of edge `image_size`."""
    return ResNet50(int(settings.get("image_size", SIZE)))
