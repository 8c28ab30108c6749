"""Build networks from the plain mappings that a configuration holds."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from neuropeft.backbones import module_of
from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Head, Predictor


def build_predictor(
    backbone: Mapping[str, Any], outputs: int, pool: str = "mean", norm: str = "fixed"
) -> Predictor:
    """Return a randomly initialised `Predictor` of `outputs` outputs.

    `outputs` is the width of the head: 1 for a binary or regression task, else the number of classes. `pool`
    and `norm` are as in `Head`.
    """
    network = build_backbone(backbone)
    return Predictor(network, Head(network.gives.width, network.gives.tokens, outputs, pool, norm))


def build_backbone(backbone: Mapping[str, Any]) -> Backbone:
    """Return a randomly initialised backbone.

    Settings are `kind`, `image_size`, `drop_path`, which a CNN ignores, and the keys of the kind.

    Raises:
        UserError: `backbone` is of an unknown kind or shape.
    """
    module = import_module(f"neuropeft.{module_of(backbone['kind'])}")
    network: Backbone = module.build(backbone)
    return network
