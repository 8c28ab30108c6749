"""VeRA (Kopiczko et al. 2024): random matrices that all layers share, and vectors that scale them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Inserted, Method
from neuropeft.methods.lora import MatrixLinear, Target, find_targets


class Projections(Inserted):
    """Frozen A [r, in] and B [rows, r], Kaiming-uniform, as large as the largest target needs.

    A smaller target uses the first columns of A and the first rows of B.
    """

    a: Tensor
    b: Tensor

    def __init__(self, targets: Sequence[Target], r: int, generator: torch.Generator) -> None:
        """Draw them for these targets."""
        super().__init__()
        columns = max(target.linear.in_features for target in targets)
        rows = max(part.stop - part.start for target in targets for part in target.rows.values())
        for name, shape in {"a": (r, columns), "b": (rows, r)}.items():
            matrix = targets[0].linear.weight.new_empty(shape)
            self.register_buffer(name, nn.init.kaiming_uniform_(matrix, generator=generator))


class VeRALinear(MatrixLinear):
    """A frozen linear layer W plus diag(b) B diag(d) A, with trained d [r] and b [rows] of every target.

    d starts at `d_initial` and b at zero, so that the layer starts as W.
    """

    def __init__(self, target: Target, settings: Mapping[str, Any], projections: Projections) -> None:
        """Wrap the target's layer; see `LowRankLinear`."""
        super().__init__(target, 1.0, settings["dropout"])
        weight, r = target.linear.weight, settings["r"]
        self.vera_d = nn.ParameterDict(
            {name: weight.new_full((r,), settings["d_initial"]) for name in target.rows}
        )
        self.vera_b = nn.ParameterDict(
            {name: weight.new_zeros(part.stop - part.start) for name, part in target.rows.items()}
        )
        self.projections = (projections,)  # in a tuple: as a module, it would be in the state of every layer

    def down(self) -> Tensor:
        """Return diag(d) A of all targets [targets * r, in]."""
        a = self.projections[0].a[:, : self.in_features]
        return torch.cat([self.vera_d[name][:, None] * a for name in self.rows])

    def up(self) -> Tensor:
        """Return diag(b) B of all targets [out, targets * r]."""
        b = self.projections[0].b
        return self.apart({name: scale[:, None] * b[: len(scale)] for name, scale in self.vera_b.items()})


class VeRA(Method):
    """Train the vectors of `targets`, by the settings `r`, `d_initial`, `targets`, `dropout`."""

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every layer that is a target, or holds one; the other parameters stay frozen."""
        targets = find_targets(backbone, settings["targets"])
        projections = Projections(targets, settings["r"], generator)
        backbone.add_module("projections", projections)
        for target in targets:
            target.replace(VeRALinear(target, settings, projections))


METHODS = {"vera": VeRA()}
