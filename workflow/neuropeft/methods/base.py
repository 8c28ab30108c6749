"""What a method is: how it adapts a backbone, and how what it trains is optimised."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor

UNDECAYED = ("positions",)  # matrices of the backbone without weight decay, as in timm and MAE
REFERENCE_WIDTH = 768  # of ViT-B: the inputs of a head for which `head_lr` is given


class Method(ABC):
    """A kind of method, without state.

    What it needs of a backbone, and which starts it takes, its settings say: the run table reads them without
    torch.

    Attributes:
        needs_gradients: Whether `select` is called.
        attaches: Whether it trains or adds anything in the backbone; if it should and does not, that is an
            error.
    """

    needs_gradients: ClassVar[bool] = False
    attaches: ClassVar[bool] = True

    @abstractmethod
    def adapt(self, backbone: Backbone, settings: Mapping[str, Any], generator: torch.Generator) -> None:
        """Make trainable what the method trains of a frozen backbone, and put in what it adds.

        Args:
            backbone: The network, changed in place.
            settings: The configured method.
            generator: Of the CPU; gives every random number. What is drawn is stored with the delta, even if
                it stays frozen.

        Raises:
            UserError: The backbone does not provide what the method attaches to.
        """

    def wants_gradients(self, settings: Mapping[str, Any]) -> bool:
        """Whether `select` is called, which a combination cannot know without its settings."""
        return self.needs_gradients

    def select(  # noqa: B027 (most have nothing to choose)
        self, backbone: Backbone, settings: Mapping[str, Any], gradients: Mapping[str, Tensor]
    ) -> None:
        """Choose what is trained by the gradients of the training scans' loss, before the first step.

        Called where `wants_gradients` says so. The choice is written into buffers that `adapt` has put in,
        which the delta holds.

        Args:
            backbone: The network, after `adapt`.
            settings: The configured method.
            gradients: Of the training scans' summed loss, of every parameter of the backbone by its name.
        """

    def penalty(self, backbone: Backbone, settings: Mapping[str, Any]) -> Tensor | None:
        """Return what is added to a scan's loss, a scalar, if anything is."""
        return None

    def before_step(  # noqa: B027
        self, backbone: Backbone, settings: Mapping[str, Any], step: int, seed: int
    ) -> None:
        """Change in place, in buffers that `adapt` has put in, how the step is computed.

        What is random must follow from `seed` and `step` alone, so that a resumed training does the same. The
        pass itself may be recorded and replayed: it must not branch by anything but shapes.
        """

    def after_step(  # noqa: B027
        self, backbone: Backbone, settings: Mapping[str, Any], step: int, steps: int
    ) -> None:
        """Change parameters and buffers in place after a step of `steps`; its gradients are still there."""

    def groups(self, model: Predictor, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the optimiser groups of an adapted `model`; see `parameter_groups`."""
        return parameter_groups(model, settings)


class Inserted(nn.Module):
    """A module that a method has put in: it is no site for others, but `inner`, what it wraps, has sites."""

    inserted: ClassVar[bool] = True  # what `Backbone.sites` asks for
    inner: nn.Module


class TakenOver(nn.Linear):
    """A linear layer in the place of another, whose parameters it takes over.

    `weight` and `bias` keep their names and storage, so a state dict of the unadapted network still fits.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over the parameters of `linear`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def plain(self, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        """Return a frozen plain layer of this shape with the weight [out, in] and the bias [out]."""
        linear = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return linear.train(self.training)


class Mergeable(nn.Module):
    """A layer that a method has put in, and for which a plain one can stand once it is trained."""

    def merged(self) -> nn.Module:
        """Return a layer of the backbone's own kind that computes the same; this one stays as it is."""
        raise NotImplementedError


def _alike(name: str) -> float:
    return 1.0


def parameter_groups(
    model: Predictor, settings: Mapping[str, Any], factor: Callable[[str], float] = _alike
) -> list[dict[str, Any]]:
    """Return the optimiser groups of an adapted `model`.

    Biases, norms, other 1-D parameters and learned positions get no weight decay. The matrices of the head
    learn at the method's `head_lr` times `REFERENCE_WIDTH` over their inputs: a step of Adam moves every
    weight alike, so outputs of more inputs move further at the same rate. Those of a decoder, whose norms
    take such factors away, learn at `head_lr`.

    Args:
        model: The network, after `adapt`.
        settings: Its configured method: lr, head_lr and weight_decay.
        factor: What the learning rate of a parameter of the backbone, by its name there, is multiplied with.

    Returns:
        Groups with the keys params, lr, weight_decay and name; empty groups are left out.
    """
    groups: dict[tuple[float, bool, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, inner = name.partition(".")
        decayed = parameter.ndim > 1 and inner not in UNDECAYED
        if part == "head":
            rate = settings.get("head_lr") or settings["lr"]
            rate *= REFERENCE_WIDTH / parameter.shape[1] if decayed and model.by_tokens else 1
        else:
            rate = settings["lr"] * factor(inner)
        label = part if decayed else f"{part}_no_decay"
        decay = settings.get("weight_decay", 0.0) if decayed else 0.0
        group = {"params": [], "lr": rate, "weight_decay": decay, "name": label}
        groups.setdefault((rate, decayed, part), group)["params"].append(parameter)
    return list(groups.values())
