"""The door to every method: adapt a network, and store what training it changed."""

import re
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
from neuropeft.models.vit3d import ViT3D
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
NOT_ADAPTING = frozenset({"kind", "lr", "head_lr", "weight_decay", "layer_decay", "shuffle_labels"})
REFERENCE_WIDTH = 768  # of ViT-B: the inputs of a head for which `head_lr` is given


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


def parameter_groups(model: Predictor, method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the optimiser groups of an adapted `model`.

    Biases, norms and other 1-D parameters get no weight decay. The matrices of the head learn at the method's
    `head_lr` times `REFERENCE_WIDTH` over their inputs: a step of Adam moves every weight alike, so outputs
    of more inputs move further at the same rate. With `layer_decay` a block learns that much slower than the
    one above it, and the embedding slowest (Clark 2020, ELECTRA; MAE's fine-tuning).

    Args:
        model: The network, after `adapt`.
        method: Its configured method: lr, head_lr, weight_decay and layer_decay.

    Returns:
        Groups with the keys params, lr, weight_decay and name; empty groups are left out.
    """
    groups: dict[tuple[float, bool, str], dict[str, Any]] = {}
    depth = len(model.backbone.blocks) if isinstance(model.backbone, ViT3D) else 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "head" if name.startswith("head.") else "backbone"
        decayed = parameter.ndim > 1
        if part == "head":
            rate = method.get("head_lr") or method["lr"]
            rate *= REFERENCE_WIDTH / parameter.shape[1] if decayed else 1
        else:
            rate = method["lr"] * method.get("layer_decay", 1.0) ** _layers_above(name, depth)
        label = part if decayed else f"{part}_no_decay"
        decay = method.get("weight_decay", 0.0) if decayed else 0.0
        group = {"params": [], "lr": rate, "weight_decay": decay, "name": label}
        groups.setdefault((rate, decayed, part), group)["params"].append(parameter)
    return list(groups.values())


def _layers_above(name: str, depth: int) -> int:
    """Return how many layers lie above a parameter's, of a ViT of `depth` blocks; the last norm is none."""
    if found := re.match(r"backbone\.blocks\.(\d+)\.", name):
        return depth - 1 - int(found[1])
    return depth if name.startswith("backbone.patch_embed.") else 0
