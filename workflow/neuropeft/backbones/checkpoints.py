"""Encoder weights in and out: our safetensors files, and checkpoints of MONAI's transformers."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.records import AGAIN

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
_METADATA = "neuropeft"  # the entry of a safetensors file that holds all of ours
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_FINAL = re.compile(r"(?:norm|blocks\.\d+)\.(weight|bias)")  # the autoencoder's final norm is its last block


def save_encoder(path: str | Path, encoder: Backbone, metadata: Mapping[str, str]) -> None:
    """Write an encoder's weights and positions atomically as safetensors.

    Args:
        path: The file to write.
        encoder: The network.
        metadata: Provenance, text by text, for example the cohort and the number of epochs; the architecture
            is added under `architecture`, as JSON.
    """
    state = {name: value.detach() for name, value in encoder.state_dict().items()}
    save_tensors(path, state, {**metadata, "architecture": json.dumps(encoder.architecture())})


def save_tensors(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata atomically as safetensors; the same ones give the same bytes.

    safetensors writes several entries of metadata in any order, so they are one.
    """
    kept = {name: value.cpu().contiguous() for name, value in state.items()}
    with atomic_path(path) as partial:
        save_file(kept, partial, metadata={_METADATA: json.dumps(dict(metadata), sort_keys=True)})


def load_encoder(path: str | Path, encoder: Backbone) -> dict[str, str]:
    """Load a file written by `save_encoder` into `encoder`, in place.

    Returns:
        The metadata of the file.

    Raises:
        UserError: The file cannot be read, is of another architecture, or has other keys.
    """
    state, metadata = read_tensors(path)
    stored, wanted = json.loads(metadata.get("architecture", "{}")), encoder.architecture()
    different = [
        f"{key} {stored[key]} for {wanted[key]}"
        for key in wanted
        if stored.get(key, wanted[key]) != wanted[key]
    ]
    if different:
        raise UserError(
            f"the encoder {path} is of another architecture ({', '.join(different)}); "
            "change the backbone or choose another pretraining"
        )
    _load_strictly(encoder, state, str(path))
    return metadata


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            return {name: stream.get_tensor(name) for name in names}, _metadata(stream)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}: {error}; {AGAIN}") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, whose tensors are not read.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            return _metadata(stream)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path}: {error}; {AGAIN}") from error


def _metadata(stream: Any) -> dict[str, str]:
    found = dict(stream.metadata() or {})
    return json.loads(found[_METADATA]) if _METADATA in found else found  # none of ours


def import_encoder(
    source: str | Path, path: str | Path, encoder: Backbone, metadata: Mapping[str, str]
) -> list[str]:
    """Turn a PyTorch checkpoint of a MONAI transformer into an encoder file; return the report.

    Args:
        source: Checkpoint of a MONAI `ViT` or `MaskedAutoEncoderViT`, bare or under `state_dict` or `model`;
            or, by its suffix .safetensors, a file of `save_encoder`, which is taken over as it is.
        path: The encoder file to write.
        encoder: A network of the same architecture; it receives the weights.
        metadata: Provenance, as in `save_encoder`.

    Returns:
        The report of `import_monai`, which is also stored as metadata `import`.
    """
    if Path(source).suffix == ".safetensors":
        save_encoder(path, encoder, {**load_encoder(source, encoder), **metadata})
        return []
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            content = content.get(key, content)
    except Exception as error:  # what unpickling a foreign file raises has no common class
        raise UserError(f"cannot read the checkpoint {source}: {error}; give a PyTorch state dict") from error
    state, report = import_monai(content)
    _load_strictly(encoder, state, str(source))
    save_encoder(path, encoder, {**metadata, "import": "; ".join(report)})
    return report


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


def _load_strictly(encoder: Backbone, state: Mapping[str, Tensor], label: str) -> None:
    own = encoder.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if missing or unexpected or reshaped:
        raise UserError(
            f"{label} does not fit the backbone: missing {missing}, unexpected {unexpected}, "
            f"of another shape {reshaped}; change the backbone or the checkpoint"
        )
    encoder.load_state_dict(dict(state))
