"""Adapt a network by any method, and store what training it changed."""

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.checkpoints import save_tensors
from neuropeft.backbones.heads import FeatureNorm, Predictor, is_still
from neuropeft.errors import UserError
from neuropeft.methods import module_of
from neuropeft.methods.base import Mergeable, Method


def adapt(model: Predictor, method: Mapping[str, Any], generator: torch.Generator) -> None:
    """Prepare `model` for training by `method`, in place: add its parameters, freeze the others.

    The head is always trained. Call it once, after loading pretrained weights.

    Args:
        model: The network.
        method: A configured method, for example `{"kind": "lora", "r": 8, "alpha": 8.0, "targets": ["q",
            "v"], "dropout": 0.0}`.
        generator: Of the CPU; gives every random number of the method.

    Raises:
        UserError: The kind is unknown, or the backbone does not support the method.
    """
    model.backbone.requires_grad_(False)
    model.head.requires_grad_(True)
    places = {name for name, _ in model.backbone.named_modules()}
    before = _tensors(model)
    attach(model.backbone, method, generator)
    model.added = frozenset(_new(before, _tensors(model)))
    model.touched = frozenset(_place(name, places) for name in _changing(model))
    model.train(model.training)


def trunk_layers(model: Predictor) -> int:
    """Return how many layers of an adapted `model`'s backbone lie below all that training can change."""
    backbone = model.backbone
    return min(map(backbone.layer_of, _changing(model)), default=backbone.layer_count)


def _changing(model: Predictor) -> set[str]:
    """Return the names, in the backbone of an adapted `model`, of what is trained and of what was put in."""
    trained = {name for name, value in model.backbone.named_parameters() if value.requires_grad}
    return trained | {name.removeprefix("backbone.") for name in model.added}


def attach(backbone: Backbone, method: Mapping[str, Any], generator: torch.Generator) -> None:
    """Adapt a frozen backbone by `method`, in place; see `adapt`.

    Raises:
        UserError: Nothing is trained or put in afterwards, or see `adapt`.
    """
    before, chosen = _tensors(backbone), method_of(method)
    chosen.adapt(backbone, method, generator)
    if (
        not chosen.attaches
        or _new(before, _tensors(backbone))
        or any(value.requires_grad for value in backbone.parameters())
    ):
        return
    targets = method.get("targets")
    looked_for = f"its `targets` {', '.join(targets)}" if targets else "the layers that it is for"
    raise UserError(
        f"{method['kind']} attaches to nothing of {type(backbone).__name__}, which has none of {looked_for}; "
        "choose others, or another backbone or method"
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = module.state_dict(keep_vars=True)
    return tensors


def _new(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that were not there before: one of a wrapped layer was, by another."""
    known = {id(value) for value in before.values()}
    return [name for name, value in now.items() if id(value) not in known]


def _place(name: str, places: Collection[str]) -> str:
    """Return the innermost of these modules that a tensor is in."""
    while name not in places:
        name = name.rpartition(".")[0]
    return name


def parameter_groups(model: Predictor, method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the optimiser groups of a `model` that is adapted by `method`; see `base.parameter_groups`."""
    return method_of(method).groups(model, method)


def method_of(method: Mapping[str, Any]) -> Method:
    """Return the method of these settings; raise `UserError` if there is no such kind."""
    kind = method["kind"]
    found: Method = import_module(f"neuropeft.{module_of(kind)}").METHODS[kind]
    return found


def delta_state(model: Predictor) -> dict[str, Tensor]:
    """Return all that training changes, and what the method added: the start does not give it.

    That is every trainable tensor, statistics of norms that are not still, and every tensor that `adapt` put
    in, frozen ones too. The tensors are the model's own, detached and not copied.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    state = {name: value.detach() for name, value in named if value.requires_grad or name in model.added}
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm | FeatureNorm) and not is_still(module):
            state |= {f"{prefix}.{name}": value for name, value in module.named_buffers()}
    return state


@torch.no_grad()
def load_delta(model: Predictor, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into an adapted `model`; every tensor of its delta must be there, and no other."""
    own = delta_state(model)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unexpected or reshaped:
        raise UserError(
            f"the delta belongs to another network or method (missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}, other shape {reshaped[:3]}); fine-tune the cell again"
        )
    for name, value in own.items():
        value.copy_(state[name])


def save_delta(path: str | Path, model: Predictor, metadata: Mapping[str, str]) -> None:
    """Write `delta_state(model)` and `metadata` atomically to the safetensors file `path`.

    `backbones.checkpoints.read_tensors` reads it.
    """
    save_tensors(path, delta_state(model), metadata)


def merge(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every mergeable layer of `model` by its plain layer; return what `unmerge` needs to undo it.

    A merged network predicts the same at no extra cost. Nothing is computed in place, so `unmerge` is exact.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, Mergeable):
            layers[name] = module
            model.set_submodule(name, module.merged())
    return layers


def unmerge(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put back the layers that `merge` took out of `model`."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
