"""Methods that train a selection of the backbone's own parameters."""

from collections.abc import Mapping
from typing import Any

import torch

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor
from neuropeft.methods.base import Method, parameter_groups


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


METHODS = {
    "scratch": Everything(),
    "full": Full(),
    # qkv and output projection, weights and biases, of every block (Dhinagar 2024, Table 1).
    "attention": Sites("attention"),
    # Scale and shift of every LayerNorm, the final one included (Dhinagar 2024, Table 1).
    "layernorm": Sites("layernorm"),
    "bitfit": BitFit(),
}
