"""Adapters: small bottlenecks after, beside or before the modules of every block, which stay frozen.

An adapter is a chain of layers: down to few channels, an activation, and up again. `New` makes the layers,
`Placed` says where its output is added, and a line of `METHODS` puts both together.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from neuropeft.backbones.base import CONVOLUTIONS, Backbone, Site
from neuropeft.errors import UserError
from neuropeft.methods.base import Inserted, Method

Init = Callable[..., object]  # fills a weight in place, with a generator
Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.Conv3d)


def zero(weight: Tensor, generator: torch.Generator) -> None:
    """Fill with zeros: what follows adds nothing at the start."""
    nn.init.zeros_(weight)


kaiming: Init = partial(nn.init.kaiming_uniform_, a=5**0.5)
xavier: Init = nn.init.xavier_uniform_
# Within two standard deviations of 0.01 (Houlsby 2019, section 3.6): near the identity, but trainable.
small: Init = partial(nn.init.trunc_normal_, std=0.01, a=-0.02, b=0.02)


class Placed(Inserted):
    """A module and an adapter of its tokens [B, N, in] -> [B, N, out]."""

    def __init__(self, inner: nn.Module, adapter: nn.Module, place: str) -> None:
        """Add to `inner` an adapter.

        Args:
            inner: The module.
            adapter: The adapter.
            place: `after` adds what the adapter makes of the module's output, `beside` what it makes of its
                input, and `before` adds that to the input.
        """
        super().__init__()
        self.inner, self.adapter, self.place = inner, adapter, place

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, in] to tokens [B, N, out]."""
        if self.place == "before":
            return self.inner(x + self.adapter(x))
        y = self.inner(x)
        return y + self.adapter(y if self.place == "after" else x)


class Scaled(nn.Module):
    """Multiply by a number, or each channel by a trained one."""

    def __init__(self, factor: float | nn.Parameter) -> None:
        """Take the number, or a parameter [width]."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, width] times the factor."""
        return x * self.factor


class DropScans(nn.Module):
    """Stochastic depth: in training, nothing is added to a scan at this rate, and more to the others."""

    def __init__(self, rate: float) -> None:
        """Take the rate."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, width], some scans zero."""
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.rate, self.training)


class New:
    """Makes the layers of a backbone's adapters; biases are zero.

    Attributes:
        settings: Of the method.
        width: Channels of a token.
        grid: Places of the tokens.
        seen: Those that a layer sees together.
        extra: How many tokens of no place come before those.
        inside: Channels of the bottleneck, as `bottleneck` or `reduction` says.
    """

    def __init__(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make layers for `backbone`, weights drawn by `generator`.

        Raises:
            UserError: The reduction leaves no channel.
        """
        self.settings = settings
        gives = backbone.gives
        self.width, self.grid, self.seen, self.extra = gives.width, gives.grid, gives.seen, gives.extra
        self.inside: int = settings.get("bottleneck") or self.width // settings.get("reduction", 1)
        if not self.inside:
            raise UserError(
                f"reduction {settings['reduction']} leaves nothing of a width of {self.width}; "
                "choose a smaller reduction or another backbone"
            )
        self._generator, self._like = generator, next(backbone.parameters())

    def empty(self, *shape: int) -> Tensor:
        """Return memory of this shape, where and of the type that the backbone is."""
        return self._like.detach().new_empty(shape)

    def drawn(self, init: Init, *shape: int) -> nn.Parameter:
        """Return a parameter of this shape."""
        value = self.empty(*shape)
        init(value, generator=self._generator)
        return nn.Parameter(value)

    def linear(self, inputs: int, outputs: int, init: Init, bias: bool = True) -> nn.Linear:
        """Return a linear layer."""
        return self._filled(self._bare(nn.Linear, inputs, outputs, bias=bias), init)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: list[int],
        init: Init = kaiming,
        groups: int = 1,
        bias: bool = True,
    ) -> nn.Conv2d | nn.Conv3d:
        """Return a convolution that keeps the grid; the edges of `kernel`, one for each axis, are odd."""
        sides = {"padding": tuple(edge // 2 for edge in kernel), "groups": groups, "bias": bias}
        made = self._bare(CONVOLUTIONS[len(kernel)], inputs, outputs, tuple(kernel), **sides)
        return self._filled(made, init)

    def down(self, init: Init = kaiming, bias: bool = True) -> nn.Linear:
        """Return the layer into the bottleneck."""
        return self.linear(self.width, self.inside, init, bias)

    def up(self, init: Init = zero) -> nn.Linear:
        """Return the layer out of the bottleneck."""
        return self.linear(self.inside, self.width, init)

    def _bare(self, layer: type[Layer], *shape: Any, **options: Any) -> Layer:
        # Its own initialisation would draw from torch's global generator.
        return skip_init(layer, *shape, device=self._like.device, dtype=self._like.dtype, **options)

    def _filled(self, layer: Layer, init: Init) -> Layer:
        init(layer.weight, generator=self._generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer


def chain(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after another, under their names."""
    return nn.Sequential(OrderedDict(layers))


def insert(site: Site, adapter: nn.Module, place: str) -> None:
    """Put an adapter at a site; see `Placed`."""
    setattr(site.owner, site.name, Placed(site.module, adapter, place))


class Adapters(Method):
    """Put an adapter at sites of every block, but of the first `left_out` blocks."""

    def __init__(self, kinds: tuple[str, ...], place: str, adapter: Callable[[New], nn.Module]) -> None:
        """Make the method.

        Args:
            kinds: Of sites, one of each in a block.
            place: See `Placed`.
            adapter: Makes one.
        """
        self.kinds, self.place, self.adapter = kinds, place, adapter

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the adapters in; raise `UserError` if they do not fit, or if no block is to have one."""
        new, left_out = New(backbone, settings, generator), settings.get("left_out", 0)
        for kind in self.kinds:
            sites = backbone.sites(kind)
            if left_out >= len(sites):
                raise UserError(
                    f"left_out {left_out} leaves none of the backbone's {len(sites)} blocks an adapter; "
                    "choose a smaller number or another backbone"
                )
            for site in sites[left_out:]:
                insert(site, self.adapter(new), self.place)


def near_identity(activation: type[nn.Module], new: New) -> nn.Module:
    """Return an adapter whose matrices are both small, so that neither is without a gradient."""
    return chain(down=new.down(small), activation=activation(), up=new.up(small))


def adapter_plus(new: New) -> nn.Module:
    """Return Adapter+'s: near the identity, with a scale of each channel, left out of some scans."""
    scale = Scaled(nn.Parameter(torch.ones_like(new.empty(new.width))))
    drop = DropScans(new.settings["drop_scans"])
    return chain(down=new.down(small), activation=nn.GELU(), up=new.up(small), scale=scale, drop=drop)


def scaled(new: New) -> nn.Module:
    """Return an adapter that starts with adding nothing, its output scaled by a constant."""
    dropout = nn.Dropout(new.settings.get("dropout", 0.0))
    scale = Scaled(new.settings["scale"])
    return chain(down=new.down(), activation=nn.ReLU(), dropout=dropout, up=new.up(), scale=scale)


class WithInput(Inserted):
    """A norm that passes on its input too."""

    def __init__(self, inner: nn.Module) -> None:
        """Take the norm."""
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [B, N, d], normalised and as they are."""
        return self.inner(x), x


class BesideNorm(Inserted):
    """An MLP after a `WithInput`, and an adapter of the tokens as they are before the norm."""

    def __init__(self, inner: nn.Module, adapter: nn.Module) -> None:
        """Take the MLP and the adapter."""
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Map what the norm gives to tokens [B, N, d]."""
        normalised, before = x
        return self.inner(normalised) + self.adapter(before)


class AdaptFormer(Method):
    """Put an adapter beside norm and MLP of every block (Chen 2022, section 3.2)."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the adapters in: they take what the norm takes, and their output is added to the MLP's."""
        new = New(backbone, settings, generator)
        for site in backbone.sites("block"):
            block: Any = site.module
            block.norm2 = WithInput(block.norm2)
            block.mlp = BesideNorm(block.mlp, scaled(new))


class AdapterBias(Method):
    """Add to every MLP's output a vector times what a linear layer makes of the hidden units (Fu 2022)."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put both beside the MLP's second layer: a bottleneck of one channel; the vector is zero."""
        new = New(backbone, settings, generator)
        for site in backbone.sites("mlp"):
            last: Any = site.module.fc2
            amount = new.linear(last.in_features, 1, partial(nn.init.normal_, std=0.02))
            vector = new.linear(1, last.out_features, zero, bias=False)
            insert(Site(site.module, "fc2", last), chain(amount=amount, vector=vector), "beside")


class Rules(nn.Module):
    """The matrices [n, n, n] that all layers of a Compacter share, near zero."""

    def __init__(self, n: int, new: New) -> None:
        """Draw n matrices of n x n."""
        super().__init__()
        self.matrices = new.drawn(partial(nn.init.normal_, std=1e-4), n, n, n)


class Hypercomplex(nn.Module):
    """A linear layer of weight sum_i A_i x (s_i t_i), Kronecker products of shared A (Mahabadi 2021)."""

    def __init__(self, inputs: int, outputs: int, rules: Rules, new: New) -> None:
        """Make the layer; raise `UserError` if its sizes are no multiples of the number of products."""
        super().__init__()
        n = len(rules.matrices)
        if inputs % n or outputs % n:
            raise UserError(
                f"a layer of {inputs} inputs and {outputs} outputs is no sum of {n} Kronecker products; "
                "choose products and a reduction so that their number divides width and bottleneck"
            )
        self._rules = (rules,)  # in a tuple, as they are the backbone's and not this layer's
        glorot = partial(_each, partial(nn.init.xavier_uniform_, gain=2**0.5))
        self.rows = new.drawn(glorot, n, inputs // n, 1)
        self.columns = new.drawn(glorot, n, 1, outputs // n)
        self.bias = new.drawn(zero, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        factors = self._rules[0].matrices, self.rows, self.columns
        weight = torch.einsum("iab,icr,ird->bdac", *factors).reshape(len(self.bias), -1)
        return F.linear(x, weight, self.bias)


def _each(init: Init, weight: Tensor, generator: torch.Generator) -> None:
    for matrix in weight:
        init(matrix, generator=generator)


class Compacter(Method):
    """Houlsby's places, with adapters of `Hypercomplex` layers (Mahabadi 2021, section 4)."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put the adapters in, and what they share into the backbone."""
        rules = Rules(settings["products"], New(backbone, settings, generator))

        def adapter(new: New) -> nn.Module:
            down, up = (new.width, new.inside), (new.inside, new.width)
            return chain(
                down=Hypercomplex(*down, rules, new), gelu=nn.GELU(), up=Hypercomplex(*up, rules, new)
            )

        Adapters(EVERY, "after", adapter).adapt(backbone, settings, generator)
        backbone.compacter = rules


EVERY = ("attention", "mlp")
METHODS = {
    # After the output projection and after the MLP, before their outputs are added (Houlsby 2019, section 2).
    "houlsby": Adapters(EVERY, "after", partial(near_identity, nn.SiLU)),
    # After the MLP alone (Pfeiffer 2021).
    "pfeiffer": Adapters(("mlp",), "after", partial(near_identity, nn.ReLU)),
    # The same, but the first blocks have none: training need not go back to them (Rueckle 2021, section 3).
    "adapter_drop": Adapters(("mlp",), "after", partial(near_identity, nn.ReLU)),
    # After the whole block (Steitz & Roth 2024, section 4).
    "adapter_plus": Adapters(("block",), "after", adapter_plus),
    # Beside the MLP, of the same input (He 2022, section 4).
    "parallel": Adapters(("mlp",), "beside", scaled),
    "adaptformer": AdaptFormer(),
    "compacter": Compacter(),
    "adapter_bias": AdapterBias(),
}
