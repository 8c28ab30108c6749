"""Several methods on one network, one after another."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.methods.adapt import attach, method_of
from neuropeft.methods.base import Method, parameter_groups

Settings = Mapping[str, Any]
Part = TypeVar("Part", nn.Parameter, nn.Module)


class Slot(NamedTuple):
    """A place of a network: `module` is the child `key` of `owner`."""

    owner: nn.Module
    key: str
    path: str
    module: nn.Module


class Combined(Method):
    """The methods `parts`, of which none may train or replace what another one does."""

    def adapt(self, backbone: Backbone, settings: Settings, generator: torch.Generator) -> None:
        """Adapt by each part in turn: it finds a frozen backbone, with what the parts before it have put in.

        What one part has put in stays its own, though another one trains all of a name, as BitFit does.

        Raises:
            UserError: Two parts train the same tensor of the backbone, or replace the same module.
        """
        own = set(backbone.parameters())
        trained: dict[nn.Parameter, str] = {}  # by which part
        replaced: dict[nn.Module, str] = {}
        for name, part in _parts(settings):
            backbone.requires_grad_(False)
            slots, before = list(_slots(backbone)), set(backbone.parameters())
            attach(backbone, part, generator)
            for path, parameter in backbone.named_parameters():
                if parameter.requires_grad and (parameter in own or parameter not in before):
                    _claim(trained, parameter, name, path)
            for slot in slots:
                if (now := getattr(slot.owner, slot.key)) is not slot.module:
                    _claim(replaced, slot.module, name, slot.path)
                    replaced[now] = name  # what stands in for a module is not replaced either
        backbone.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        backbone.trained_by = {
            path: trained[parameter]
            for path, parameter in backbone.named_parameters()
            if parameter in trained
        }

    def wants_gradients(self, settings: Settings) -> bool:
        """Whether any part does."""
        return any(method_of(part).wants_gradients(part) for _, part in _parts(settings))

    def select(self, backbone: Backbone, settings: Settings, gradients: Mapping[str, Tensor]) -> None:
        """Let the parts choose that do."""
        for _, part in _parts(settings):
            if method_of(part).wants_gradients(part):
                method_of(part).select(backbone, part, gradients)

    def penalty(self, backbone: Backbone, settings: Settings) -> Tensor | None:
        """Return the sum of the parts' penalties, if any part has one."""
        found = [method_of(part).penalty(backbone, part) for _, part in _parts(settings)]
        some = [penalty for penalty in found if penalty is not None]
        return torch.stack(some).sum() if some else None

    def before_step(self, backbone: Backbone, settings: Settings, step: int, seed: int) -> None:
        """Call all parts."""
        for _, part in _parts(settings):
            method_of(part).before_step(backbone, part, step, seed)

    def after_step(self, backbone: Backbone, settings: Settings, step: int, steps: int) -> None:
        """Call all parts."""
        for _, part in _parts(settings):
            method_of(part).after_step(backbone, part, step, steps)

    def groups(self, model: Predictor, settings: Settings) -> list[dict[str, Any]]:
        """Return each part's groups of what it trains, and the head's by the combination's own settings.

        The learning rates of the parts keep their ratio to the first one's, which is that of the combination.
        """
        named = dict(model.backbone.named_parameters())
        factor = settings["lr"] / settings["parts"][0]["lr"]
        found = list(_only(parameter_groups(model, settings), set(model.head.parameters())))
        for name, part in _parts(settings):
            groups = method_of(part).groups(model, {**part, "lr": part["lr"] * factor})
            found += _only(
                groups, {named[path] for path, by in model.backbone.trained_by.items() if by == name}
            )
        return found


def _parts(settings: Settings) -> Iterator[tuple[str, Settings]]:
    return zip(settings["combine"], settings["parts"], strict=True)


def _slots(backbone: nn.Module) -> Iterator[Slot]:
    for path, owner in backbone.named_modules():
        for key, module in owner.named_children():
            yield Slot(owner, key, f"{path}.{key}".lstrip("."), module)


def _claim(taken: dict[Part, str], part: Part, name: str, path: str) -> None:
    """Note that a method trains or replaces a part of the network; raise `UserError` if another one does."""
    if part in taken:
        raise UserError(f"`combine`: {taken[part]} and {name} both change {path}; leave one of them out")
    taken[part] = name


def _only(groups: Iterable[dict[str, Any]], wanted: set[nn.Parameter]) -> Iterator[dict[str, Any]]:
    """Yield the groups with those of their parameters that are wanted."""
    for group in groups:
        if params := [parameter for parameter in group["params"] if parameter in wanted]:
            yield {**group, "params": params}


METHODS = {"combined": Combined()}
