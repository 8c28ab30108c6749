"""The door to every method: adapt a network, and store what training it changed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.models.heads import FeatureNorm, Predictor
from neuropeft.peft import lora, selective


def _lora(backbone: nn.Module, r: int, alpha: float, targets: list[str], dropout: float = 0.0) -> None:
    lora.inject(selective.require_vit(backbone, "lora"), r, alpha, targets, dropout)


# Each takes the frozen backbone and the method's options, and makes trainable what the method trains.
METHODS: dict[str, Callable[..., None]] = {
    "scratch": selective.train_all,
    "full": selective.train_all,
    "attention": selective.train_attention,
    "layernorm": selective.train_layernorm,
    "lora": _lora,
}

# Keys of a configured method that say how it is trained, not what.
NOT_ADAPTING = frozenset({"kind", "lr", "head_lr", "weight_decay", "shuffle_labels"})


def adapt(model: Predictor, method: Mapping[str, Any]) -> None:
    """Prepare `model` for training by `method`, in place: add its parameters, freeze the others.

    The head is always trained. Call it once, after loading pretrained weights.

    Args:
        model: A network with `.backbone` and `.head`.
        method: A configured method, for example `{"kind": "lora", "r": 8, "alpha": 8.0, "targets": ["q",
            "v"]}`; the keys `NOT_ADAPTING` are left to the trainer.

    Raises:
        UserError: The kind or an option is unknown, or the backbone does not support the method.
    """
    options = {key: value for key, value in method.items() if key not in NOT_ADAPTING}
    kind = method.get("kind")
    if kind not in METHODS:
        raise UserError(f"method kind {kind!r} is unknown; give one of {', '.join(METHODS)}")
    model.backbone.requires_grad_(False)
    model.head.requires_grad_(True)
    try:
        METHODS[kind](model.backbone, **options)
    except TypeError as error:
        raise UserError(f"options {options} do not fit method {kind}: {error}") from error
    model.train(model.training)


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """Return all that training changes: trainable parameters, statistics of norms not frozen.

    The tensors are the model's own, detached and not copied.
    """
    state = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in model.named_modules():
        frozen = [not value.requires_grad for value in module.parameters()]
        if isinstance(module, _BatchNorm | FeatureNorm) and not (frozen and all(frozen)):
            state |= {f"{prefix}.{name}": value for name, value in module.named_buffers()}
    return state


@torch.no_grad()
def load_delta(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into an adapted `model`; every trained tensor must be there, and no other."""
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


def save_delta(path: str | Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write `delta_state(model)` and `metadata` atomically to the safetensors file `path`.

    `models.checkpoints.read_tensors` reads it.
    """
    state = {name: value.contiguous().cpu() for name, value in delta_state(model).items()}
    with atomic_path(path) as partial:
        save_file(state, partial, metadata=dict(metadata))


def parameter_groups(
    model: Predictor, lr: float, weight_decay: float, head_lr: float | None = None
) -> list[dict[str, Any]]:
    """Return the optimiser groups of an adapted `model`.

    Biases, norms and other 1-D parameters get no weight decay; the head has groups of its own, with `head_lr`
    if given. Each group has the keys params, lr, weight_decay and name; empty groups are left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "head" if name.startswith("head.") else "backbone"
        decayed = parameter.ndim > 1
        label = part if decayed else f"{part}_no_decay"
        rate = head_lr if part == "head" and head_lr is not None else lr
        group = {"params": [], "lr": rate, "weight_decay": weight_decay if decayed else 0.0, "name": label}
        groups.setdefault(label, group)["params"].append(parameter)
    return list(groups.values())
