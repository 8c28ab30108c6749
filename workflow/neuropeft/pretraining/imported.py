"""Weights that were pretrained elsewhere: checkpoints of other libraries, and encoder files of ours."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.checkpoints import load_encoder, load_strictly, read_tensors, save_encoder
from neuropeft.errors import UserError
from neuropeft.pretraining.images import import_resnet50_2d, import_vit_2d

# MONAI's names (ViT and MaskedAutoEncoderViT) and ours, below `blocks.<i>.` and above it.
_IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.out_proj": "attn.proj",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
}
_PATCHES = re.compile(r"(?P<prefix>.*)patch_embedding\.patch_embeddings\.(?:1\.)?weight")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_FINAL = re.compile(r"(?:norm|blocks\.\d+)\.(weight|bias)")  # the autoencoder's final norm is its last block


def import_encoder(
    source: str | Path, path: str | Path, encoder: Backbone, metadata: Mapping[str, str]
) -> list[str]:
    """Turn a checkpoint of another library into an encoder file; return the report.

    Args:
        source: Checkpoint, PyTorch's, bare or under `state_dict` or `model`, or by its suffix .safetensors:
            of MONAI's `ViT` or `MaskedAutoEncoderViT` for a `vit`, of timm's, MAE's, MRM's, DINOv2's or
            Hugging Face's ViT for a `vit_2d` or a `vit_slices`, of torchvision's for a `resnet50_2d`, of a
            U-Net of diffusers for a `diffusion`; or a file of `save_encoder`, which is taken over as it is.
        path: The encoder file to write.
        encoder: A network of the same architecture; it receives the weights.
        metadata: Provenance, as in `save_encoder`.

    Returns:
        The report, as of `import_monai`, which is also stored as metadata `import`.

    Raises:
        UserError: The file cannot be read, is of no such network, or does not fit the encoder.
    """
    if Path(source).suffix == ".safetensors":
        content, stored = read_tensors(source)
        if "architecture" in stored:
            save_encoder(path, encoder, {**load_encoder(source, encoder), **metadata})
            return _resized(content, encoder)
    else:
        content = _read(source)
    kind = encoder.architecture()["kind"]
    if kind not in IMPORTERS:
        raise UserError(f"weights from elsewhere cannot be taken over for a {kind}; choose another backbone")
    state, report = IMPORTERS[kind](content, encoder)
    load_strictly(encoder, encoder.fitted(state), str(source))
    report += _resized(state, encoder)
    save_encoder(path, encoder, {**metadata, "import": "; ".join(report)})
    return report


def _resized(state: Mapping[str, Tensor], encoder: Backbone) -> list[str]:
    theirs, own = (len(one.get("positions", ())) for one in (state, encoder.state_dict()))
    return [] if theirs == own else [f"positions of {theirs} places were interpolated to {own}"]


def _read(source: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a PyTorch checkpoint."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE's checkpoints hold their options
            content = torch.load(source, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            content = content.get(key, content)
    except Exception as error:  # what unpickling a foreign file raises has no common class
        raise UserError(f"cannot read the checkpoint {source}: {error}; give a PyTorch state dict") from error
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def import_monai(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of a MONAI `ViT` or `MaskedAutoEncoderViT` to those of `ViT3D`.

    Position embeddings are taken over as they are, sin-cos or learnt, and stay fixed from then on. Features
    equal those of MONAI's network exactly if it has no class token; a class token takes part in its attention
    and cannot be kept, which the report says.

    Args:
        state: The state dict; a common prefix such as `module.` or `backbone.` is taken off.

    Returns:
        The state dict for `ViT3D` and a report: one line for each thing that was added or left out.
    """
    found = next((match for name in state if (match := _PATCHES.fullmatch(name))), None)
    if found is None:
        raise UserError(
            "the checkpoint has no patch_embedding.patch_embeddings; give that of a MONAI ViT or MAE"
        )
    prefix, renamed, ignored = found["prefix"], {}, []
    for name, value in state.items():
        target = _our_name(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if target is None:
            ignored.append(name)
        else:
            renamed[target] = value
    report = (
        [f"ignored {len(ignored)} tensors that the encoder has no use for: {', '.join(ignored)}"]
        if ignored
        else []
    )
    if any(name.endswith("cls_token") for name in ignored):
        report.append(
            "the class token was dropped: features differ from those of the network it was trained in"
        )
    _reshape_patch_embedding(renamed)
    for name, value in list(renamed.items()):
        bias = name.replace("qkv.weight", "qkv.bias")
        if bias not in renamed:
            renamed[bias] = value.new_zeros(value.shape[0])
            report.append(f"{bias} was absent and is zero")
    return renamed, report


def _our_name(name: str) -> str | None:
    if match := re.fullmatch(r"patch_embedding\.patch_embeddings\.(?:1\.)?(weight|bias)", name):
        return f"patch_embed.{match[1]}"
    if name == "patch_embedding.position_embeddings":
        return "positions"
    if match := _FINAL.fullmatch(name):
        return f"norm.{match[1]}"
    if (match := _BLOCK.fullmatch(name)) and match[2] in _IN_BLOCK:
        return f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"
    return None


def _reshape_patch_embedding(state: dict[str, Tensor]) -> None:
    # MONAI stores positions as [1, N, d], and a `perceptron` projection as a matrix over voxels and channel.
    if "positions" in state:
        state["positions"] = state["positions"].squeeze(0)
    weight = state["patch_embed.weight"]
    if weight.ndim == 2:
        edge = round(weight.shape[1] ** (1 / 3))
        if edge**3 != weight.shape[1]:
            raise UserError(
                f"a patch of the checkpoint has {weight.shape[1]} values, no cube; give a one-channel ViT"
            )
        state["patch_embed.weight"] = weight.view(-1, 1, edge, edge, edge)


Importer = Callable[[Mapping[str, Tensor], Backbone], tuple[dict[str, Tensor], list[str]]]
# By the kind of backbone.
IMPORTERS: Mapping[str, Importer] = {
    "vit": lambda state, encoder: import_monai(state),
    "vit_2d": import_vit_2d,
    "vit_slices": import_vit_2d,
    "resnet50_2d": import_resnet50_2d,
    # The file of a diffusers U-Net has its names, below that of the part of the backbone that it is.
    "diffusion": lambda state, encoder: (
        {f"unet.{name}": value.float() for name, value in state.items()},
        [],
    ),
}
