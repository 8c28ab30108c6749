"""FacT (Jie and Deng 2023): the updates of all blocks' matrices as one tensor, factorised."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError
from neuropeft.methods.base import Inserted, Method
from neuropeft.methods.lora import MatrixLinear, Target, find_targets

EVERYWHERE = ("q", "k", "v", "proj", "fc1", "fc2")


class Factors(Inserted):
    """What all matrices share: U [r, d], as a linear layer starts, V [d, r], zero, and Tucker's core."""

    core: nn.Parameter | None

    def __init__(self, width: int, r: int, matrices: int, tucker: bool, generator: torch.Generator) -> None:
        """Make the factors of so many `matrices` d x d, where d is `width`."""
        super().__init__()
        self.r, self.width, self.matrices = r, width, matrices
        self.u = uniform((r, width), width**-0.5, generator)
        self.v = nn.Parameter(torch.zeros(width, r))
        core = torch.empty(r, r, r) if tucker else None
        self.core = None if core is None else nn.Parameter(nn.init.xavier_uniform_(core, generator=generator))


class FacTLinear(MatrixLinear):
    """A frozen linear layer whose weight is cut into matrices d x d, each plus scale * V C U.

    An MLP's layer of 4 d channels has four of them. C [r, r] is a matrix's own: with the tensor-train format
    it is trained; with Tucker's it is sum_j p_j core_j, of the shared core and trained p [r]. Dropout is
    between C and V.
    """

    def __init__(
        self, target: Target, settings: Mapping[str, Any], shared: Factors, generator: torch.Generator
    ) -> None:
        """Wrap the target's layer; see `LowRankLinear`."""
        r, width = shared.r, shared.width
        self.shape = outs, ins = target.linear.out_features // width, target.linear.in_features // width
        rows = {str(i): slice(i * width, (i + 1) * width) for i in range(outs)}
        super().__init__(target._replace(rows=rows), settings["scale"], settings["dropout"])
        self.shared = (shared,)  # in a tuple: as a module, it would be in the state of every layer
        if shared.core is None:
            self.fact_c = uniform((outs * ins, r, r), (ins * r) ** -0.5, generator)  # as a linear layer's
        else:
            self.fact_p = uniform((outs * ins, r), (6 / (r + shared.matrices)) ** 0.5, generator)  # Xavier's

    def low(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out / d * r]."""
        return self.dropped(F.linear(x, self.down()))

    def down(self) -> Tensor:
        """Return C U of all matrices, [out / d * r, in]."""
        (shared,) = self.shared
        cores = self.fact_c if shared.core is None else self.fact_p @ shared.core.flatten(1)
        products = cores.view(*self.shape, shared.r, shared.r) @ shared.u  # [out / d, in / d, r, d]
        return products.transpose(1, 2).reshape(-1, self.in_features)

    def up(self) -> Tensor:
        """Return V of all matrices, [out, out / d * r]."""
        return self.apart(dict.fromkeys(self.rows, self.shared[0].v))


class FacT(Method):
    """Add factorised updates to q, k, v, proj, fc1 and fc2 of every block, by `r`, `scale`, `dropout`.

    With four matrices each in fc1 and fc2 these are 12 per block. Of L blocks, Tucker's format (TK) trains
    2 d r + r^3 + 12 L r numbers, and the tensor-train format (TT) 2 d r + 12 L r^2 (section 3).
    """

    def __init__(self, tucker: bool) -> None:
        """Make the method: TK, or else TT."""
        self.tucker = tucker

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every linear layer; the other parameters stay frozen.

        Raises:
            UserError: A layer cannot be cut into matrices d x d.
        """
        width, targets = backbone.gives.width, find_targets(backbone, EVERYWHERE)
        sizes = [(target.linear.out_features, target.linear.in_features) for target in targets]
        if any(size % width for pair in sizes for size in pair):
            raise UserError(
                f"FacT cuts weights into squares of the backbone's width, {width}, which does not divide its "
                "MLP's; give a whole mlp_ratio or another method"
            )
        matrices = sum(out * inputs for out, inputs in sizes) // width**2
        shared = Factors(width, settings["r"], matrices, self.tucker, generator)
        backbone.add_module("factors", shared)
        for target in targets:
            target.replace(FacTLinear(target, settings, shared, generator))


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """Return a parameter drawn from -bound to bound."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


METHODS = {"fact_tk": FacT(tucker=True), "fact_tt": FacT(tucker=False)}
