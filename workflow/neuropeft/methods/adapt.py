"""The door to every method: adapt a network, and store what training it changed."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuropeft.backbones.checkpoints import save_tensors
from neuropeft.backbones.heads import FeatureNorm, Predictor
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
    # By identity, as a module that is put around another gives its tensors other names.
    before = [*model.parameters(), *model.buffers()]
    method_of(method).adapt(model.backbone, method, generator)
    known, stored = {id(value) for value in before}, model.state_dict()
    named = [*model.named_parameters(), *model.named_buffers()]
    model.added = frozenset(name for name, value in named if name in stored and id(value) not in known)
    model.train(model.training)


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

    That is every trainable tensor, statistics of norms that are not frozen, and every tensor that `adapt` put
    in, frozen ones too. The tensors are the model's own, detached and not copied.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    state = {name: value.detach() for name, value in named if value.requires_grad or name in model.added}
    for prefix, module in model.named_modules():
        frozen = [not value.requires_grad for value in module.parameters()]
        if isinstance(module, _BatchNorm | FeatureNorm) and not (frozen and all(frozen)):
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
