"""What networks of images do with pixels first: standardise them, as their weights are used to."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropeft.errors import UserError

# Of the pixels of ImageNet, from 0 to 1, by channel.
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Standardise(nn.Module):
    """(x - mean) / sd, channel by channel; the numbers are settings, no part of the weights.

    Attributes:
        values: {`mean`: a number for each channel, `sd`: the same}.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None, sd: Sequence[float] | None) -> None:
        """Take the numbers of as many channels; ImageNet's, or their averages for one channel, if None.

        Raises:
            UserError: There are not as many numbers as channels.
        """
        super().__init__()
        self.values: dict[str, list[float]] = {}
        for name, given, usual in (("mean", mean, IMAGENET_MEAN), ("sd", sd, IMAGENET_SD)):
            numbers = given or (usual if channels == len(usual) else [sum(usual) / len(usual)] * channels)
            if len(numbers) != channels:
                raise UserError(
                    f"{name} has {len(numbers)} numbers for {channels} channels; give one for each"
                )
            self.values[name] = [*numbers]
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the same shape."""
        return (x - self.mean) / self.sd

    def inverse(self, x: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of which `forward` makes `x`."""
        return x * self.sd + self.mean
