"""What a backbone offers to heads, methods and checkpoints."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from neuropeft.errors import UserError

SIZE = 80  # edge of a scan in voxels, where the settings give none
# By the axes of scans.
CONVOLUTIONS: Mapping[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS: Mapping[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class InputSpec(NamedTuple):
    """Batches that a backbone takes: [B, channels, *S], where S is `size` for each of `dims` axes."""

    dims: int
    channels: int
    size: int


class FeatureSpec(NamedTuple):
    """Tokens that a backbone gives: [B, N, width]."""

    width: int  # channels of a token
    grid: tuple[int, ...]  # the places in a scan that its layers have a token for
    extra: int = 0  # how many tokens of no place, such as a class token, its layers have before those
    gives_extra: bool = False  # whether it gives the extra tokens alone, and not those of the places
    # Whether its layers see each slice, a step along the first axis of the grid, by itself
    by_slice: bool = False

    @property
    def places(self) -> int:
        """Places of the grid."""
        return math.prod(self.grid)

    @property
    def seen(self) -> tuple[int, ...]:
        """The places that a layer sees together."""
        return self.grid[1:] if self.by_slice else self.grid

    @property
    def tokens(self) -> int:
        """Tokens that are given of a scan, N."""
        return self.extra if self.gives_extra else self.places


class MapSpec(NamedTuple):
    """A feature map [B, width, *grid] that a backbone gives a decoder; `stride` voxels lie between places."""

    width: int
    stride: int


class Site(NamedTuple):
    """A place where a method can attach: `module` is the child `name` of `owner`."""

    owner: nn.Module
    name: str
    module: nn.Module


class Backbone(nn.Module, ABC):
    """A network from scans to tokens."""

    # {kind of site: class of its modules, or classes}; with what no module stands for, such as tokens, they
    # are what the backbone's settings say that it provides
    SITES: ClassVar[Mapping[str, type[nn.Module] | tuple[type[nn.Module], ...]]]
    # What methods call a linear layer that has another name here, such as `q`
    NAMES: ClassVar[Mapping[str, str]] = {}
    # Names of the modules from the last stage of layers on, of a network that has stages
    LAST_STAGE: ClassVar[tuple[str, ...]] = ()
    takes: InputSpec  # the scans that it takes
    gives: FeatureSpec  # the tokens that it gives
    layer_count: int = 1  # how many layers it can be cut between; the last one gives the tokens
    trained_by: Mapping[str, str]  # of a combination of methods, {parameter: which of them trains it}
    # Whether a training pass may be recorded as a CUDA graph, which must not wait for the GPU
    recordable: bool = True

    @abstractmethod
    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, width] of scans [B, C, *S]."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return what weights must share with this network to fit, stored beside them."""

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a network of this architecture, made for scans of another size, for this."""
        return dict(state)

    @cached_property
    def gives_maps(self) -> tuple[MapSpec, ...]:
        """The feature maps that it gives, from the first layers to the last; its tokens alone by default."""
        return (MapSpec(self.gives.width, self.takes.size // self.gives.grid[-1]),)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps [B, width, *grid] of scans [B, C, *S], as `gives_maps` lists them."""
        return [self.tokens(x).transpose(1, 2).unflatten(2, self.gives.grid)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, width] of scans [B, C, *S]: the mean over tokens."""
        return self.tokens(x).mean(dim=1)

    def sites(self, kind: str) -> list[Site]:
        """Return the sites of a kind, in the order of the network's modules.

        Raises:
            UserError: The backbone does not provide this kind.
        """
        if kind not in self.SITES:
            raise self.lacks(kind)
        return [site for site in _children(self) if isinstance(site.module, self.SITES[kind])]

    def width_of(self, module: nn.Module) -> int:
        """Return the channels of what the module of a site gives."""
        return self.gives.width

    def layer_of(self, name: str) -> int:
        """Return the layer, from 0, that holds the parameter `name`; 0 where they are not told apart."""
        return 0

    def below(self, x: Tensor, layers: int) -> Tensor:
        """Return what the first `layers` layers, 1 or more, make of scans [B, C, *S]."""
        return self.tokens(x)

    def above(self, x: Tensor, layers: int) -> Tensor:
        """Return the tokens [B, N, width] that the other layers make of what `below` gave."""
        return x

    def last_stage(self) -> list[nn.Module]:
        """Return the modules from the last stage on.

        Raises:
            UserError: The backbone has no stages.
        """
        if not self.LAST_STAGE:
            raise self.lacks("stages")
        return [self.get_submodule(name) for name in self.LAST_STAGE]

    def layers_above(self, name: str) -> int:
        """Return how many layers lie above that of the parameter `name`; 0 where they are not told apart."""
        return 0

    def lacks(self, kind: str) -> UserError:
        """Return the error of a method that needs what this backbone does not provide."""
        return UserError(
            f"{type(self).__name__} does not provide {kind}, to which the method attaches; "
            "choose another backbone or method"
        )


def quarters(depth: int) -> list[int]:
    """Return the blocks, from 0, that end the quarters of a depth: 2, 5, 8 and 11 of 12."""
    return [-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)]


def _children(owner: nn.Module) -> Iterator[Site]:
    """Yield all modules below `owner`, but none that a method has put in, such as an adapter's layers."""
    for name, module in owner.named_children():
        if getattr(owner, "inserted", False) and name != "inner":
            continue
        if not getattr(module, "inserted", False):
            yield Site(owner, name, module)
        yield from _children(module)
