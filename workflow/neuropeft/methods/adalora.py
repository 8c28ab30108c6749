"""AdaLoRA (Zhang et al. 2023): ranks go to the matrices where they matter, while training."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.methods.base import Method
from neuropeft.methods.lora import MatrixLinear, Target, find_targets

START_STD = 0.02  # of P and Q
BETA = 0.85  # of the running means of sensitivity and uncertainty, as in the paper


class AdaLoRALinear(MatrixLinear):
    """A frozen linear layer W plus scale * P diag(e) Q; a target has P [rows, r], e [r] and Q [r, in].

    P and Q are normal and e is zero, so that the layer starts as W. `sensitivity` and `uncertainty` are
    running means for every number of all P, e and Q, one target's after another's.
    """

    sensitivity: Tensor
    uncertainty: Tensor

    def __init__(self, target: Target, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Wrap the target's layer; see `LowRankLinear`."""
        r, rows, weight = settings["init_r"], target.rows, target.linear.weight
        super().__init__(target, settings["alpha"] / r, settings["dropout"])
        self.lora_p = nn.ParameterDict(
            {name: weight.new_empty(part.stop - part.start, r) for name, part in rows.items()}
        )
        self.lora_e = nn.ParameterDict({name: weight.new_zeros(r) for name in rows})
        self.lora_q = nn.ParameterDict({name: weight.new_empty(r, self.in_features) for name in rows})
        for p, _, q in self.triples():
            nn.init.normal_(p, std=START_STD, generator=generator)
            nn.init.normal_(q, std=START_STD, generator=generator)
        size = sum(value.numel() for triple in self.triples() for value in triple)
        self.register_buffer("sensitivity", weight.new_zeros(size))
        self.register_buffer("uncertainty", weight.new_zeros(size))

    def triples(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, nn.Parameter]]:
        """Yield P, e and Q of every target."""
        for name in self.rows:
            yield self.lora_p[name], self.lora_e[name], self.lora_q[name]

    def down(self) -> Tensor:
        """Return diag(e) Q of all targets [targets * r, in]."""
        return torch.cat([e[:, None] * q for _, e, q in self.triples()])

    def up(self) -> Tensor:
        """Return P of all targets [out, targets * r]."""
        return self.apart(self.lora_p)

    def measure(self) -> None:
        """Take the step's gradients into the running means (section 3.2)."""
        values = [value for triple in self.triples() for value in triple]
        now = torch.cat([(value * value.grad).flatten() for value in values if value.grad is not None]).abs()
        self.sensitivity.lerp_(now, 1 - BETA)
        self.uncertainty.lerp_((now - self.sensitivity).abs(), 1 - BETA)

    def scores(self) -> Tensor:
        """Return how important each rank of every target is [targets, r] (section 3.2)."""
        each = self.sensitivity * self.uncertainty
        shapes = [value.shape for triple in self.triples() for value in triple]
        parts = [
            part.view(shape)
            for part, shape in zip(each.split([shape.numel() for shape in shapes]), shapes, strict=True)
        ]
        triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        return torch.stack([e + p.mean(dim=0) + q.mean(dim=1) for p, e, q in triples])


class AdaLoRA(Method):
    """Start with `init_r` ranks in each target and leave `target_r` on average.

    After each step the least important ranks, over all layers, have their e set to zero, so that as many are
    left as the schedule allows: all in the first share `tinit` of the steps, `target_r` per target in the
    last, `tfinal`, and in between a cubic from one to the other (algorithm 1, with an interval of 1). Such a
    rank may come back until importance is no longer measured, when the last share begins. Weights kept from
    before have more ranks.
    """

    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Replace every layer that is a target, or holds one; the other parameters stay frozen."""
        for target in find_targets(backbone, settings["targets"]):
            target.replace(AdaLoRALinear(target, settings, generator))

    def penalty(self, backbone: Backbone, settings: Mapping[str, Any]) -> Tensor:
        """Return how far each P and Q is from orthogonal, |P'P - 1| and |QQ' - 1|, averaged and weighted.

        As in the authors' code; their equation squares the norms and adds them up (section 3.1).
        """
        triples = [triple for layer in _layers(backbone) for triple in layer.triples()]
        products = torch.stack([gram for p, _, q in triples for gram in (p.T @ p, q @ q.T)])  # [n, r, r]
        identity = torch.eye(products.shape[-1], device=products.device)
        distance: Tensor = torch.linalg.matrix_norm(products - identity)
        return settings["orthogonality"] * distance.mean()

    @torch.no_grad()
    def after_step(self, backbone: Backbone, settings: Mapping[str, Any], step: int, steps: int) -> None:
        """Measure importance and take ranks away."""
        layers, done = _layers(backbone), step + 1
        if done < steps * (1 - settings["tfinal"]):
            for layer in layers:
                layer.measure()
        scores = torch.cat([layer.scores() for layer in layers])  # [targets, init_r]
        away = scores.numel() - budget(settings, len(scores), done, steps)
        if away:
            least = scores.flatten().argsort()[:away]
            kept = torch.ones_like(scores).flatten().index_fill(0, least, 0).view_as(scores)
            ranks = (e for layer in layers for _, e, _ in layer.triples())
            for e, some in zip(ranks, kept, strict=True):
                e.mul_(some)


def budget(settings: Mapping[str, Any], targets: int, done: int, steps: int) -> int:
    """Return how many ranks all targets have together after `done` of the steps (section 3.3)."""
    first, last = settings["tinit"] * steps, (1 - settings["tfinal"]) * steps
    progress = min(max((done - first) / (last - first), 0.0), 1.0)
    start, end = settings["init_r"], settings["target_r"]
    return int(targets * (end + (start - end) * (1 - progress) ** 3))


def _layers(backbone: Backbone) -> list[AdaLoRALinear]:
    return [module for module in backbone.modules() if isinstance(module, AdaLoRALinear)]


METHODS = {"adalora": AdaLoRA()}
