"""BitFit (Ben Zaken et al. 2022): train every bias of the backbone."""

from collections.abc import Mapping
from typing import Any

import torch

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Method


class BitFit(Method):
    """Train all parameters called `bias`, those of norms too.

    The convolutions of common CNNs have none: there it trains the shift of every batch norm. A norm that is
    trained in part moves its running statistics too, and they are stored with the delta.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make every bias trainable."""
        for name, parameter in backbone.named_parameters():
            if name.rpartition(".")[2] == "bias":
                parameter.requires_grad_(True)


METHODS = {"bitfit": BitFit()}
