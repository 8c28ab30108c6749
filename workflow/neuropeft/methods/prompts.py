"""Methods that give a frozen backbone learned tokens, or keys and values, to attend to."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Inserted, Mergeable, Method

BOTTLENECK = 512  # hidden width of the MLP that reparameterises a prefix (Li and Liang 2021)
PREFIX_STD = 0.02  # of a prefix that is trained as it is


class Prompts(Inserted):
    """A block that gets learned tokens before those of the scan."""

    def __init__(self, inner: nn.Module, prompts: Tensor, dropout: float) -> None:
        """Put `prompts` [p, width] before what `inner` sees, with dropout at this rate in training."""
        super().__init__()
        self.inner, self.dropout = inner, dropout
        self.prompts = nn.Parameter(prompts)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, p + n, d], or [B, n, d] if `inner` takes the prompts out."""
        prompts = self.prompts.expand(len(x), -1, -1)
        prompts = F.dropout(prompts, self.dropout, self.training)
        return self.inner(torch.cat((prompts, x), dim=1))


class WithoutPrompts(Inserted):
    """A block whose first tokens end there: neither the next block nor the final norm sees them."""

    def __init__(self, inner: nn.Module, number: int) -> None:
        """Take the first `number` tokens out of what `inner` gives."""
        super().__init__()
        self.inner, self.number = inner, number

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, p + n, d] to tokens [B, n, d]."""
        return self.inner(x)[:, self.number :]


class VPT(Method):
    """Visual prompt tuning (Jia et al. 2022), by the settings `prompts` and `dropout`.

    Prompts start uniform as Xavier draws the weights of the patch projection. Backbones without a class token
    pool over the tokens of the scan alone.
    """

    def __init__(self, deep: bool) -> None:
        """Give prompts to the first block, which stay to the last, or to every block its own if `deep`."""
        self.deep = deep

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put prompts before blocks, and take them out after the last block that sees them."""
        takes, gives = backbone.takes, backbone.gives
        voxels = takes.channels * takes.size**takes.dims / gives.places  # of a patch
        bound = math.sqrt(6 / (voxels + gives.width))
        places = backbone.sites("block")
        for site in places if self.deep else places[-1:]:
            setattr(site.owner, site.name, WithoutPrompts(site.module, settings["prompts"]))
        for owner, name, _ in places if self.deep else places[:1]:
            prompts = next(backbone.parameters()).new_empty(settings["prompts"], gives.width)
            nn.init.uniform_(prompts, -bound, bound, generator=generator)
            setattr(owner, name, Prompts(owner.get_submodule(name), prompts, settings["dropout"]))


class Prefixed(Inserted):
    """Attention to learned keys and values, besides those of the tokens."""

    def prefix(self) -> Tensor:
        """Return the learned keys and values, [2, p, width]."""
        raise NotImplementedError

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the mixed values [B, heads, n, d/heads] of queries, keys and values of that shape."""
        batch, heads, _, depth = k.shape
        learned = self.prefix().to(k.dtype).unflatten(-1, (heads, depth)).transpose(1, 2)
        more_k, more_v = learned[:, None].expand(-1, batch, -1, -1, -1)  # each [B, heads, p, d/heads]
        return F.scaled_dot_product_attention(q, torch.cat((more_k, k), dim=2), torch.cat((more_v, v), dim=2))


class FlatPrefix(Prefixed):
    """Keys and values that are trained as they are."""

    def __init__(self, learned: Tensor) -> None:
        """Take these keys and values, [2, p, width]."""
        super().__init__()
        self.learned = nn.Parameter(learned)

    def prefix(self) -> Tensor:
        """Return the learned keys and values, [2, p, width]."""
        return self.learned


class Trunk(Inserted):
    """Learned tokens and the first layer of an MLP, which all prefixes share."""

    def __init__(self, number: int, like: Tensor, width: int, generator: torch.Generator) -> None:
        """Draw `number` tokens of `width` channels, and the layer, in the type of `like`."""
        super().__init__()
        self.tokens = nn.Parameter(like.new_empty(number, width))
        self.weight = nn.Parameter(like.new_empty(BOTTLENECK, width))
        self.bias = nn.Parameter(like.new_zeros(BOTTLENECK))
        nn.init.normal_(self.tokens, generator=generator)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)

    def forward(self) -> Tensor:
        """Return the hidden layer [p, BOTTLENECK]."""
        return F.linear(self.tokens, self.weight, self.bias).tanh()


class ComputedPrefix(Prefixed, Mergeable):
    """Keys and values that an MLP computes, which makes their training steadier."""

    def __init__(self, trunk: Trunk, width: int, generator: torch.Generator) -> None:
        """Draw the second layer, of this attention's keys and values of `width` channels."""
        super().__init__()
        self.shared = [trunk]  # in a list, as it is no part of each of those that share it
        self.weight = nn.Parameter(trunk.weight.new_empty(2 * width, BOTTLENECK))
        self.bias = nn.Parameter(trunk.weight.new_zeros(2 * width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5), generator=generator)

    def prefix(self) -> Tensor:
        """Return the computed keys and values, [2, p, width]."""
        computed = F.linear(self.shared[0](), self.weight, self.bias)
        return torch.stack(computed.chunk(2, dim=-1))

    def merged(self) -> FlatPrefix:
        """Return the keys and values without what computes them."""
        return FlatPrefix(self.prefix().detach()).requires_grad_(False).train(self.training)


class Prefix(Method):
    """Prefix tuning (Li and Liang 2021), by the settings `prompts` and `reparameterised`.

    With L layers of width d, p prompts are 2 L p d parameters; their MLP, of one hidden layer of 512 that all
    layers share, has p d + 512 (d + 1) + 513 * 2 L d.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Let every attention layer see learned keys and values."""
        sites, number = backbone.sites("attention"), settings["prompts"]
        width, like = backbone.gives.width, next(backbone.parameters())
        if settings["reparameterised"]:
            trunk = Trunk(number, like, width, generator)
            computed = [ComputedPrefix(trunk, width, generator) for _ in sites]
            computed[0].trunk = trunk  # a part of the first, so that it is stored once
            prefixes: list[Prefixed] = [*computed]
        else:
            drawn = [like.new_empty(2, number, width) for _ in sites]
            prefixes = [
                FlatPrefix(nn.init.normal_(one, std=PREFIX_STD, generator=generator)) for one in drawn
            ]
        for site, prefix in zip(sites, prefixes, strict=True):
            site.module.attend = prefix


METHODS = {"vpt_shallow": VPT(deep=False), "vpt_deep": VPT(deep=True), "prefix": Prefix()}
