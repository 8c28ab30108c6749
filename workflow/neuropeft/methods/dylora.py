"""DyLoRA (Valipour et al. 2023): one training for all ranks up to the largest."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Inserted, Method
from neuropeft.methods.lora import LoRALinear, Target, find_targets
from neuropeft.train.seeds import derive_seed


class Ranks(Inserted):
    """What the update of each rank counts in a pass: alpha / b for the first b of them, 0 for the others.

    Of rank b is what training draws for each step; `predict_rank` is what predictions use.
    """

    drawn: Tensor

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Start with all ranks."""
        super().__init__()
        self.r, self.alpha = int(settings["r"]), float(settings["alpha"])
        self.predict_rank = int(settings["predict_rank"] or self.r)
        self.register_buffer("drawn", self.gains(self.r))

    def gains(self, rank: int, like: Tensor | None = None) -> Tensor:
        """Return the factors [r] of all ranks if the first `rank` are used, on the device of `like`."""
        device = None if like is None else like.device
        return (torch.arange(self.r, device=device) < rank) * (self.alpha / rank)


class DyLoRALinear(LoRALinear):
    """LoRA of which the first ranks work without the others, as if they were all."""

    def __init__(
        self, target: Target, settings: Mapping[str, Any], ranks: Ranks, generator: torch.Generator
    ) -> None:
        """Wrap the target's layer; see `LoRALinear`."""
        super().__init__(target, settings["r"], 1.0, settings["dropout"], generator)
        self.ranks = (ranks,)  # in a tuple: as a module, it would be in the state of every layer

    def down(self) -> Tensor:
        """Return A of all targets [targets * r, in], its rows scaled, or zero."""
        (ranks,) = self.ranks
        gains = ranks.drawn if self.training else ranks.gains(ranks.predict_rank, self.weight)
        return torch.cat([gains[:, None] * self.lora_a[name] for name in self.rows])


class DyLoRA(Method):
    """Train all ranks from 1 to `r` at once (algorithm 1; rows 1 to b learn, not b alone).

    The update of rank b is alpha / b times the first b columns of B and rows of A. Adam's momentum moves the
    others on.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every layer that is a target, or holds one; the other parameters stay frozen."""
        targets, ranks = find_targets(backbone, settings["targets"]), Ranks(settings)
        backbone.add_module("ranks", ranks)
        for target in targets:
            target.replace(DyLoRALinear(target, settings, ranks, generator))

    def before_step(self, backbone: Backbone, settings: Mapping[str, Any], step: int, seed: int) -> None:
        """Draw the step's rank, each from 1 to r as likely."""
        ranks = backbone.get_submodule("ranks")
        assert isinstance(ranks, Ranks)
        rank = 1 + derive_seed(seed, "rank", step) % ranks.r
        ranks.drawn.copy_(ranks.gains(rank, ranks.drawn))


METHODS = {"dylora": DyLoRA()}
