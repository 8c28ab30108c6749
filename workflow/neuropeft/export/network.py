"""The network of an exported model: plain where a plain one computes the same, else whole with its method."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.build import build_predictor
from neuropeft.backbones.checkpoints import read_tensors, save_tensors
from neuropeft.backbones.heads import Predictor
from neuropeft.errors import UserError
from neuropeft.methods.adapt import load_delta, merge, unmerge
from neuropeft.train.choices import with_choice
from neuropeft.train.finetune import make_model
from neuropeft.train.sources import kind_of

SAME: Mapping[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # of outputs, which merging rounds otherwise

Spec = Mapping[str, Any]


def trained_network(delta: Path, encoder: Path | None) -> tuple[Predictor, dict[str, Any], dict[str, str]]:
    """Return a cell's network as it was trained, in evaluation mode on the CPU.

    Args:
        delta: what `finetune` wrote.
        encoder: the pretrained encoder that the cell started from; None from random weights.

    Returns:
        The network; what defines it, as `grid.cell_spec` writes it, with what a search has chosen; and the
        metadata of the delta.

    Raises:
        UserError: a file is damaged or belongs to another network.
    """
    state, metadata = read_tensors(delta)
    spec = with_choice(json.loads(metadata["spec"]), json.loads(metadata["choice"]))
    model = make_model(spec, encoder)
    load_delta(model, state)
    return model.eval(), spec, metadata


def save_network(path: Path, model: Predictor, spec: Spec, scans: Tensor) -> bool:
    """Write the weights of a network, which stays as it is.

    Args:
        path: the safetensors file.
        model: the adapted network, in evaluation mode.
        spec: what defines it.
        scans: [B, C, *S], on which the plain network must compute the same.

    Returns:
        Whether these are the weights of a plain network, into which the method is merged.
    """
    plain = merged(model, spec, scans)
    # Copies: some methods share a tensor between layers, which safetensors refuses.
    state = {name: value.detach().clone() for name, value in (plain or model).state_dict().items()}
    save_tensors(path, state, {})
    return plain is not None


@torch.inference_mode()
def merged(model: Predictor, spec: Spec, scans: Tensor) -> Predictor | None:
    """Return the plain network that computes the same on `scans` [B, C, *S]; None if there is none."""
    plain = plain_network(spec).to(scans.device)
    layers = merge(model)
    state = model.state_dict()
    unmerge(model, layers)
    own = plain.state_dict()
    if any(name not in state or state[name].shape != value.shape for name, value in own.items()):
        return None
    plain.load_state_dict({name: state[name] for name in own})
    return plain if torch.allclose(plain(scans), model(scans), **SAME) else None


def plain_network(spec: Spec) -> Predictor:
    """Return the network of a specification without its method, of random weights, to evaluate."""
    training = spec["training"]
    backbone = {**spec["backbone"], "drop_path": 0.0}
    outputs = kind_of(spec).outputs
    return build_predictor(backbone, outputs, training["pool"], training["feature_norm"]).eval()


def load_network(path: Path, spec: Spec, is_plain: bool) -> Predictor:
    """Return the network that `save_network` wrote, in evaluation mode on the CPU.

    Raises:
        UserError: the file is damaged or of another network.
    """
    model = plain_network(spec) if is_plain else make_model(spec, None).eval()
    state, _ = read_tensors(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the network of its folder; export the model again") from error
    return model
