"""Encoder weights in and out, as safetensors files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.records import AGAIN

_METADATA = "neuropeft"  # the entry of a safetensors file that holds all of ours


def save_encoder(path: str | Path, encoder: Backbone, metadata: Mapping[str, str]) -> None:
    """Write an encoder's weights and positions atomically as safetensors.

    `metadata` is its provenance, text by text, such as the cohort and the number of epochs; the architecture
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

    What it was made for may be scans of another size, see `Backbone.fitted`.

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
        if key != "image_size" and stored.get(key, wanted[key]) != wanted[key]
    ]
    if different:
        raise UserError(
            f"the encoder {path} is of another architecture ({', '.join(different)}); "
            "change the backbone or choose another pretraining"
        )
    load_strictly(encoder, encoder.fitted(state), str(path))
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


def load_strictly(encoder: Backbone, state: Mapping[str, Tensor], label: str) -> None:
    """Load `state` into `encoder`, in place; `label` is where it is from, for errors.

    Raises:
        UserError: A tensor is missing, unexpected or of another shape.
    """
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
