"""Methods that train a selection of the backbone's own parameters."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.methods.base import Inserted, Mergeable, Method, TakenOver, parameter_groups


class Everything(Method):
    """Train every parameter, from random weights."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make all parameters trainable."""
        backbone.requires_grad_(True)


class Full(Everything):
    """Train every parameter, from pretrained weights: lower layers, which are more general, more slowly."""

    def groups(self, model: Predictor, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the optimiser groups of an adapted `model`.

        With `layer_decay` a layer learns that much slower than the one above it, and the embedding slowest
        (Clark 2020, ELECTRA; MAE's fine-tuning).
        """
        decay = settings.get("layer_decay", 1.0)
        return parameter_groups(model, settings, lambda name: decay ** model.backbone.layers_above(name))


class HeadAlone(Method):
    """Train nothing of the backbone: a linear probe, by the same training as all methods."""

    attaches = False

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Leave the backbone frozen."""


class Partial(Method):
    """Train the last blocks, as many as `blocks` says, and the final norm (VPT's partial-k, Jia 2022)."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make them trainable."""
        blocks, wanted = backbone.sites("block"), settings["blocks"]
        if wanted > len(blocks):
            raise UserError(f"`blocks` is {wanted}, but the backbone has {len(blocks)}; give at most as many")
        for site in (*blocks[-wanted:], backbone.sites("layernorm")[-1]):
            site.module.requires_grad_(True)


class FairTune(Method):
    """Train parts of each block, chosen by a mask (Dutt 2024, FairTune), by the setting `mask`."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make the parts of every block's mask trainable."""
        blocks, masks = backbone.sites("block"), settings["mask"]
        if len(masks) not in (1, len(blocks)):
            raise UserError(
                f"`mask` is for {len(masks)} blocks, but the backbone has {len(blocks)}; give one for each "
                "or one for all"
            )
        for site, mask in zip(blocks, masks * (len(blocks) // len(masks)), strict=True):
            for part in filter(None, mask.split("+")):
                site.module.get_submodule(part).requires_grad_(True)


class Sites(Method):
    """Train all parameters of the backbone's modules of one kind."""

    def __init__(self, kind: str) -> None:
        """Make the method that trains the sites of this kind."""
        self.kind = kind

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make the parameters of all sites trainable."""
        for site in backbone.sites(self.kind):
            site.module.requires_grad_(True)


class BitFit(Method):
    """Train all parameters called `bias`, those of norms too (Ben Zaken et al. 2022).

    The convolutions of common CNNs have none: there it trains the shift of every batch norm. A norm that is
    trained in part moves its running statistics too, and they are stored with the delta.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make every bias trainable."""
        for name, parameter in backbone.named_parameters():
            if name.rpartition(".")[2] == "bias":
                parameter.requires_grad_(True)


class Scaled(Inserted):
    """A module whose outputs are multiplied by a learned scale, of every channel its own, from 1."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        """Scale the `width` channels of what `inner` gives."""
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d], with whatever else `inner` takes."""
        scaled: Tensor = self.inner(x, *others, **named) * self.scale
        return scaled


class DiffFit(BitFit):
    """Train biases, norms, and a scale after attention and MLP (Xie 2023), as OSU's ViT_PEFT_Vision does."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make biases and LayerNorms trainable, and put in the scales: 2 d in a block of width d."""
        super().adapt(backbone, settings, generator)
        for site in backbone.sites("layernorm"):
            site.module.requires_grad_(True)
        for site in (*backbone.sites("attention"), *backbone.sites("mlp")):
            setattr(site.owner, site.name, Scaled(site.module, backbone.width_of(site.module)))


class Reweighted(TakenOver, Mergeable):
    """A linear layer that computes its weight from a frozen one."""

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return the weight [out, in] and the bias [out] that count."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(x, *self.effective())

    def merged(self) -> nn.Linear:
        """Return a plain layer of the weight and bias that count; this one stays as it is."""
        return self.plain(*self.effective())


class QueryValue(Reweighted):
    """A fused projection whose rows of q and v are trained, and those of k are not.

    They are parameters of their own: a gradient that is masked would not keep weight decay from the others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Start with the rows of `linear`, which are q's, k's and v's, in this order."""
        super().__init__(linear)
        self.rows, self.biases = (nn.Parameter(_q_and_v(own)) for own in (linear.weight, linear.bias))

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return trained and frozen rows together."""
        return _with_k(self.rows, self.weight), _with_k(self.biases, self.bias)


def _q_and_v(fused: Tensor) -> Tensor:
    q, _, v = fused.detach().chunk(3)
    return torch.cat((q, v))


def _with_k(trained: Tensor, fused: Tensor) -> Tensor:
    q, v = trained.chunk(2)
    return torch.cat((q, fused.chunk(3)[1], v))


class AttentionQV(Method):
    """Train the weights and biases of q and v in every attention layer."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Put layers with trainable rows in the place of the fused projections."""
        for site in backbone.sites("attention"):
            assert isinstance(site.module.qkv, nn.Linear)
            site.module.qkv = QueryValue(site.module.qkv)


class Sparse(Reweighted):
    """A linear layer of which a few weights are trained: the change of each, from 0.

    Attributes:
        places: Which inputs of every output they belong to, [out, n].
    """

    places: Tensor

    def __init__(self, linear: nn.Linear, number: int) -> None:
        """Train `number` weights of every output, the first ones until others are chosen."""
        super().__init__(linear)
        self.change = nn.Parameter(linear.weight.new_zeros(self.out_features, number))
        self.register_buffer("places", torch.arange(number).repeat(self.out_features, 1))

    def effective(self) -> tuple[Tensor, Tensor]:
        """Return the frozen weight with the changes added."""
        changed = self.weight.gather(1, self.places) + self.change
        return self.weight.scatter(1, self.places, changed), self.bias


class GPS(Method):
    """Train the weights with the largest gradients (Zhang 2024, gradient-based parameter selection).

    Of every output of every linear layer they are the `connections` inputs whose weights have the largest
    gradients of the training loss. As in the authors' code the biases of these layers are trained too, and no
    norms. They choose by a contrastive loss; here it is the loss of the task.
    """

    needs_gradients: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make biases trainable, and put in the changes of weights."""
        wanted = settings["connections"]
        for site in backbone.sites("linear"):
            assert isinstance(site.module, nn.Linear)
            if wanted > site.module.in_features:
                raise UserError(
                    f"`connections` is {wanted}, but `{site.name}` has {site.module.in_features} inputs; "
                    "give at most as many"
                )
            setattr(site.owner, site.name, Sparse(site.module, wanted))
            site.module.bias.requires_grad_(True)

    def select(
        self, backbone: Backbone, settings: Mapping[str, Any], gradients: Mapping[str, Tensor]
    ) -> None:
        """Choose the weights that are trained."""
        for name, module in backbone.named_modules():
            if isinstance(module, Sparse):
                largest = gradients[f"{name}.weight"].abs().topk(settings["connections"], dim=1)
                module.places.copy_(largest.indices)


METHODS = {
    "scratch": Everything(),
    "full": Full(),
    "linear": HeadAlone(),
    "untuned": HeadAlone(),  # of a network without a head
    "partial": Partial(),
    # qkv and output projection, weights and biases, of every block (Dhinagar 2024, Table 1).
    "attention": Sites("attention"),
    "attention_qv": AttentionQV(),
    # Scale and shift of every LayerNorm, the final one included (Dhinagar 2024, Table 1).
    "layernorm": Sites("layernorm"),
    "bitfit": BitFit(),
    "difffit": DiffFit(),
    "fairtune": FairTune(),
    "gps": GPS(),
}
