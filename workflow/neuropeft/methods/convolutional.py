"""Methods for convolutional networks, whose convolutions map [B, C, *S] to [B, C', *S'], in 2D or 3D."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import BATCH_NORMS, CONVOLUTIONS, Backbone
from neuropeft.backbones.heads import STILL
from neuropeft.methods.base import Inserted, Mergeable, Method

Settings = Mapping[str, Any]
Conv = nn.Conv2d | nn.Conv3d
MIXING = 3  # edge of the kernels that mix places; those of one voxel mix channels alone
SSF_STD = 0.02  # of scales and shifts at the start (Lian 2022)
TSA_START = 1e-4  # of the identity (Li 2022)


def empty_conv(like: Conv, inputs: int, outputs: int, kernel: Any, **options: Any) -> Conv:
    """Return a convolution where `like` is, without values: torch would draw them from its own generator."""
    weight = like.weight
    made = nn.utils.skip_init(
        CONVOLUTIONS[axes(like)], inputs, outputs, kernel, **options, device=weight.device, dtype=weight.dtype
    )
    assert isinstance(made, Conv)
    return made


def axes(conv: Conv) -> int:
    """Return the axes of the scans that a convolution is for, 2 or 3."""
    return len(conv.kernel_size)


def by_channel(conv: Conv) -> Tensor:
    """Return memory of a number for each output channel, [C', 1, ...], where the convolution is."""
    return conv.weight.new_empty(conv.out_channels, *[1] * axes(conv))


def as_default(conv: Conv, generator: torch.Generator) -> Conv:
    """Draw the weight of a convolution as torch does by default; its bias, if it has one, is 0."""
    nn.init.kaiming_uniform_(conv.weight, a=math.sqrt(5), generator=generator)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def plain(conv: Conv, weight: Tensor, bias: Tensor | None) -> Conv:
    """Return a frozen convolution like `conv`, of another weight and bias."""
    made = deepcopy(conv)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return made


class ScaledConv(Inserted, Mergeable):
    """A convolution whose outputs are scaled and shifted by channel (Lian 2022, section 3.2).

    Scales are drawn from N(1, 0.02), shifts from N(0, 0.02).
    """

    inner: Conv

    def __init__(self, conv: Conv, settings: Settings, generator: torch.Generator) -> None:
        """Wrap `conv`."""
        super().__init__()
        self.inner = conv
        self.scale, self.shift = nn.Parameter(by_channel(conv)), nn.Parameter(by_channel(conv))
        nn.init.normal_(self.scale, 1.0, SSF_STD, generator=generator)
        nn.init.normal_(self.shift, 0.0, SSF_STD, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, scaled and shifted."""
        return self.inner(x) * self.scale + self.shift

    def merged(self) -> Conv:
        """Return one convolution that computes the same."""
        scale, bias = self.scale, self.shift.flatten()
        if self.inner.bias is not None:
            bias = bias + scale.flatten() * self.inner.bias
        return plain(self.inner, self.inner.weight * scale[..., None], bias)


class LoRAConv(Inserted, Mergeable):
    """A convolution W plus (alpha / r) B A (Hu 2022): A is W's kernel to r channels, B mixes them.

    A is Kaiming-uniform and B is zero, so that the layer starts as W.
    """

    inner: Conv

    def __init__(self, conv: Conv, settings: Settings, generator: torch.Generator) -> None:
        """Wrap `conv`: `r` x C x kernel + C' x `r` parameters."""
        super().__init__()
        self.inner, r = conv, settings["r"]
        self.scale = settings["alpha"] / r
        shape = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.a = as_default(
            empty_conv(conv, conv.in_channels, r, conv.kernel_size, bias=False, **shape), generator
        )
        self.b = empty_conv(conv, r, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, updated."""
        return self.inner(x) + self.scale * self.b(self.a(x))

    def merged(self) -> Conv:
        """Return one convolution that computes the same."""
        update = torch.einsum("or,ri...->oi...", self.b.weight.flatten(1), self.a.weight)
        return plain(self.inner, self.inner.weight + self.scale * update, self.inner.bias)


class ParallelMatrix(Inserted, Mergeable):
    """A convolution plus a matrix of its own for every place: y = conv(x) + alpha x (Li 2022, TSA, eq. 3).

    The published start is 1e-4 of the identity, as far as a matrix that is not square has one. Zero would
    learn as well; this one is what the published results are from.
    """

    inner: Conv

    def __init__(self, conv: Conv, settings: Settings, generator: torch.Generator) -> None:
        """Wrap `conv`, of an odd kernel that is padded to keep the size: C' x C parameters."""
        super().__init__()
        self.inner = conv
        self.alpha = empty_conv(conv, conv.in_channels, conv.out_channels, 1, stride=conv.stride, bias=False)
        nn.init.dirac_(self.alpha.weight)
        with torch.no_grad():
            self.alpha.weight.mul_(TSA_START)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.inner(x) + self.alpha(x)

    def merged(self) -> Conv:
        """Return one convolution that computes the same: the matrix is added at the kernel's centre."""
        edges = [size // 2 for size in self.inner.kernel_size for _ in range(2)]
        return plain(self.inner, self.inner.weight + F.pad(self.alpha.weight, edges), self.inner.bias)


class SeriesMatrix(Inserted, Mergeable):
    """A convolution, then y + W norm(y) (Rebuffi 2017, section 3): W is a matrix, of every place alike.

    The norm is a batch norm without scale and shift, of which W could make up for the first. It goes by the
    batch in training, like those of a network that is fine-tuned as a whole, and by its own running
    statistics later. W is zero, so that the layer starts as the convolution.
    """

    inner: Conv

    def __init__(self, conv: Conv, settings: Settings, generator: torch.Generator) -> None:
        """Wrap `conv`: C' x C' parameters."""
        super().__init__()
        self.inner, width = conv, conv.out_channels
        norm = BATCH_NORMS[axes(conv)]
        self.norm = norm(width, affine=False, device=conv.weight.device, dtype=conv.weight.dtype)
        self.mix = empty_conv(conv, width, width, 1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs and what is added to them."""
        y = self.inner(x)
        return y + self.mix(self.norm(y))

    def merged(self) -> Conv:
        """Return one convolution that computes the same as this one in evaluation mode."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        scaled = self.mix.weight.flatten(1) * (variance + self.norm.eps).rsqrt()  # [C', C']
        matrix = torch.eye(len(scaled), device=scaled.device, dtype=scaled.dtype) + scaled
        bias = -scaled @ mean
        if self.inner.bias is not None:
            bias = bias + matrix @ self.inner.bias
        return plain(self.inner, torch.einsum("op,pi...->oi...", matrix, self.inner.weight), bias)


class ConvAdapter(Inserted):
    """A convolution plus a bottleneck (Chen 2024, Conv-Adapter, section 3.2): s * up(relu(down(x))).

    `down` takes the convolution's kernel over groups of `reduction` channels, each to one; `up` mixes them to
    C' channels; s is a scale by channel, 1 at the start. `up` is zero, so that the layer starts as the
    convolution.
    """

    inner: Conv

    def __init__(self, conv: Conv, settings: Settings, generator: torch.Generator) -> None:
        """Wrap `conv`; with m = C / reduction it adds C x kernel + m + C' x m + 2 C' parameters."""
        super().__init__()
        self.inner, width = conv, max(1, conv.in_channels // settings["reduction"])
        shape = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        down = empty_conv(conv, conv.in_channels, width, conv.kernel_size, groups=width, **shape)
        self.down = as_default(down, generator)
        self.up = empty_conv(conv, width, conv.out_channels, 1)
        self.scale = nn.Parameter(nn.init.ones_(by_channel(conv)))
        for value in self.up.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return self.inner(x) + self.scale * self.up(self.down(x).relu())


class Convolutions(Method):
    """Wrap every convolution, or those of one size of kernel."""

    def __init__(
        self,
        wrapper: Callable[[Conv, Settings, torch.Generator], nn.Module],
        edge: int | None = None,
    ) -> None:
        """Make the method that wraps convolutions whose kernels have this edge, or any, by `wrapper`."""
        self.wrapper = wrapper
        self.edge = edge

    def adapt(self, backbone: Backbone, settings: Settings, generator: torch.Generator) -> None:
        """Put the wrappers in."""
        for site in backbone.sites("conv"):
            assert isinstance(site.module, Conv)
            if self.edge is None or set(site.module.kernel_size) == {self.edge}:
                setattr(site.owner, site.name, self.wrapper(site.module, settings, generator))


class BatchNorms(Method):
    """Train scale and shift of every batch norm; its running statistics are told apart."""

    def adapt(self, backbone: Backbone, settings: Settings, generator: torch.Generator) -> None:
        """Make them trainable; unless the statistics adapt, they normalise by those of the start."""
        for site in backbone.sites("batchnorm"):
            site.module.requires_grad_(True)
            setattr(site.module, STILL, not settings["adapt_statistics"])


class LastStage(Method):
    """Train the network's last stage and the norm behind it, as a whole: running statistics move too."""

    def adapt(self, backbone: Backbone, settings: Settings, generator: torch.Generator) -> None:
        """Make all its parameters trainable."""
        for module in backbone.last_stage():
            module.requires_grad_(True)


METHODS = {
    "batchnorm": BatchNorms(),
    "last_block": LastStage(),
    "ssf_conv": Convolutions(ScaledConv),
    "lora_conv": Convolutions(LoRAConv),
    "tsa": Convolutions(ParallelMatrix, MIXING),
    "series": Convolutions(SeriesMatrix, MIXING),
    "conv_adapter": Convolutions(ConvAdapter, MIXING),
}
