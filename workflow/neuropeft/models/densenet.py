"""DenseNet121 in 3D, from MONAI, without its classification layer."""

from torch import Tensor, nn

DENSENET121_WIDTH = 1024
HALVINGS = 5  # of a scan's edge up to the last feature map


def places(size: int) -> int:
    """Return how many places the last feature map of scans of edge `size` has."""
    return (size // 2**HALVINGS) ** 3


class DenseNet121Features(nn.Module):
    """MONAI's DenseNet121 up to the pooled features, 1024 a scan."""

    def __init__(self) -> None:
        """Make a randomly initialised network for one input channel; imports MONAI, which takes seconds."""
        super().__init__()
        from monai.networks.nets.densenet import DenseNet121

        self.features = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1).features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, 1024] of scans [B, 1, S, S, S]: the mean over places."""
        return self.tokens(x).mean(dim=1)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the last feature map of scans [B, 1, S, S, S], place by place: [B, N, 1024]."""
        return self.features(x).relu().flatten(2).transpose(1, 2)
