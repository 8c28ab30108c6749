"""Weights of networks of images, by other libraries' names and by ours.

They are the names of timm, which MAE, MRM and DINOv2 share, of Hugging Face's `ViTModel` and `Dinov2Model`,
and of torchvision's ResNet-50.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.vit_2d import ViT2D
from neuropeft.errors import UserError

State = dict[str, Tensor]

_TIMM = "patch_embed.proj.weight"
_HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
_TORCHVISION = "layer1.0.conv1.weight"
# Hugging Face's names and timm's, above the blocks and below `layer.<i>.`; q, k and v are put together.
_ABOVE = {
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layernorm_after": "norm2",
    "norm2": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias|)")
_QKV = "attention.attention.{}"


def import_vit_2d(state: Mapping[str, Tensor], encoder: Backbone) -> tuple[State, list[str]]:
    """Rename the weights of a ViT to those of a `ViT2D`.

    Args:
        state: Its state dict, by timm's or Hugging Face's names; a common prefix such as `module.` or
            `encoder.` is taken off.
        encoder: The network that they are for.

    Returns:
        The state dict for the network and a report: one line for each thing that was changed or left out.

    Raises:
        UserError: The names are of neither library.
    """
    assert isinstance(encoder, ViT2D)
    named, report = _without_prefix(state, _TIMM), list[str]()
    if named is None and (theirs := _without_prefix(state, _HUGGING_FACE)) is not None:
        named = _timm_names(theirs)
    if named is None:
        raise UserError(
            f"the checkpoint has neither {_TIMM} nor {_HUGGING_FACE}; give that of a ViT in 2D: timm's, "
            "MAE's, MRM's, DINOv2's or Hugging Face's"
        )
    ours: State = {}
    for part in ("weight", "bias"):
        if (value := named.pop(f"patch_embed.proj.{part}", None)) is not None:
            ours[f"patch_embed.{part}"] = value
    token, positions = named.pop("cls_token", None), named.pop("pos_embed", None)
    if positions is not None:
        ours["positions"], of_token = _split_positions(positions.flatten(0, -2), token is not None)
        if token is not None:
            token = token.flatten() + of_token
    if token is not None and encoder.gives.extra:
        ours["class_token"] = token
    elif token is not None:
        report.append("the class token was dropped: features differ from those of the network it was in")
    kept = re.compile(r"blocks\.\d+\..+|norm\.(weight|bias)")
    ours |= {name: value for name, value in named.items() if kept.fullmatch(name)}
    report += _ignored(named.keys() - ours.keys())
    report += _fit_channels(ours, "patch_embed.weight", encoder.takes.channels)
    return ours, report


def import_resnet50_2d(state: Mapping[str, Tensor], encoder: Backbone) -> tuple[State, list[str]]:
    """Rename the weights of torchvision's ResNet-50 to those of a `ResNet50In2D`; as `import_vit_2d`."""
    named = _without_prefix(state, _TORCHVISION)
    if named is None:
        raise UserError(f"the checkpoint has no {_TORCHVISION}; give that of torchvision's ResNet-50")
    own = encoder.state_dict()
    ours = {f"network.{name}": value for name, value in named.items() if f"network.{name}" in own}
    report = _ignored({name for name in named if f"network.{name}" not in own})
    # Old files do not count batches, and nothing here depends on their number.
    ours |= {
        name: torch.zeros_like(value)
        for name, value in own.items()
        if name.endswith("num_batches_tracked") and name not in ours
    }
    report += _fit_channels(ours, "network.conv1.weight", encoder.takes.channels)
    return ours, report


def _without_prefix(state: Mapping[str, Tensor], known: str) -> State | None:
    """Return tensors by their names after what stands before the name `known`; None if that is not there."""
    found = sorted((name for name in state if f".{name}".endswith(f".{known}")), key=len)
    if not found:
        return None
    prefix = found[0].removesuffix(known)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _timm_names(state: State) -> State:
    """Return the tensors of a ViT of Hugging Face's by timm's names, or their own if it has none."""
    renamed: State = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            renamed[_ABOVE.get(name, name)] = value
            continue
        number, inner, part = block.groups()
        if inner in _IN_BLOCK:
            renamed[f"blocks.{number}.{_IN_BLOCK[inner]}{part}"] = value
        elif inner == _QKV.format("query"):
            names = [name.replace(".query.", f".{one}.") for one in ("query", "key", "value")]
            if all(one in state for one in names):
                renamed[f"blocks.{number}.attn.qkv{part}"] = torch.cat([state[one] for one in names])
        elif inner not in (_QKV.format("key"), _QKV.format("value")):
            renamed[name] = value
    return renamed


def _split_positions(positions: Tensor, has_token: bool) -> tuple[Tensor, Tensor | float]:
    """Return the positions of patches [g^2, width], and that of the class token [width], of [n, width]."""
    if has_token and round((len(positions) - 1) ** 0.5) ** 2 == len(positions) - 1:
        return positions[1:], positions[0]
    return positions, 0.0


def _fit_channels(state: State, name: str, channels: int) -> list[str]:
    """Fit a first convolution to other numbers of channels, as timm does; return the report.

    It is summed over its channels where scans have one alone. Where they have more, its channels are repeated
    and weakened, so that what it sums up stays as large.
    """
    weight = state.get(name)
    if weight is None or channels == (own := weight.shape[1]) or own == 1:
        return []
    if channels == 1:
        state[name] = weight.sum(dim=1, keepdim=True)
        return [f"{name} was summed over its {own} channels, as if each saw the same image"]
    state[name] = weight[:, [place % own for place in range(channels)]] * (own / channels)
    return [f"{name} of {own} channels was repeated for {channels}"]


def _ignored(names: set[str]) -> list[str]:
    if not names:
        return []
    return [f"ignored {len(names)} tensors that the encoder has no use for: {', '.join(sorted(names))}"]
