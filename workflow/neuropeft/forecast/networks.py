"""What a training step takes of operations and memory, counted on networks that are built for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from neuropeft.backbones.build import build_backbone
from neuropeft.methods.adapt import delta_state
from neuropeft.pretraining.mae3d import build_mae
from neuropeft.train.finetune import make_model
from neuropeft.train.flops import blank_scans, training_flops, training_pass
from neuropeft.train.supervised import held_layers

FLOAT, MOMENTS = 4, 2  # bytes of a number in training, and what AdamW keeps of each that is trained


class Network(NamedTuple):
    """What a network takes in training."""

    flops: int  # operations of a step for a scan
    # memory that a scan takes from its forward pass to its backward pass, in float32: at most
    scan_bytes: float
    weight_bytes: int  # memory of weights, gradients and AdamW's moments
    stored_bytes: int  # what is stored of it: a delta, or an encoder
    state_bytes: int  # what a checkpoint holds: what is trained, AdamW's moments, and the best weights so far


def of_cell(spec: Mapping[str, Any]) -> Network:
    """Return what a cell takes, `spec` as `grid.cell_spec` writes it; nothing is computed."""
    where = torch.device("meta")
    with where:
        model = make_model(spec, None)
    held, stored = held_layers(spec["training"], model), _bytes(delta_state(model))
    return _counted(model, model, model.backbone.takes.size, where, held, stored)


def of_pretraining(spec: Mapping[str, Any], edge: int) -> Network:
    """Return what a pretraining takes, `spec` as `grid.pretraining_spec` writes it, on the CPU.

    An autoencoder counts as one of all patches; of another kind, the encoder counts, trained whole.
    """
    where = torch.device("cpu")
    if "decoder" not in spec:
        encoder = build_backbone(spec["backbone"])
        return _counted(encoder, encoder, edge, where, 0, _bytes(encoder.state_dict()))
    mae = build_mae(spec["backbone"], spec["decoder"], spec["mask_ratio"], spec["normalize_targets"])
    return _counted(AutoencoderLoss(mae), mae, edge, where, 0, _bytes(mae.encoder.state_dict()))


def token_bytes(backbone: Mapping[str, Any]) -> int:
    """Return the bytes of a scan's tokens as they are stored for probes, in half precision."""
    with torch.device("meta"):
        gives = build_backbone(backbone).gives
    return 2 * gives.tokens * gives.width


class AutoencoderLoss(nn.Module):
    """An autoencoder as a network with one output."""

    def __init__(self, mae: nn.Module) -> None:
        """Take an autoencoder that returns its loss as `loss`."""
        super().__init__()
        self.mae = mae

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of scans [B, C, *S], a scalar."""
        return self.mae(x).loss


def _counted(
    network: nn.Module, of: nn.Module, edge: int, where: torch.device, held: int, stored: int
) -> Network:
    every = list(of.parameters())
    trained = sum(value.numel() for value in every if value.requires_grad)
    # The difference of two batches: what does not grow with them, such as weights, drops out.
    scan_bytes = (_saved(network, edge, where, held, 4) - _saved(network, edge, where, held, 2)) / 2
    return Network(
        training_flops(network, edge, where, held),
        scan_bytes,
        FLOAT * (sum(value.numel() for value in every) + (1 + MOMENTS) * trained),
        stored,
        FLOAT * trained * (1 + MOMENTS) + stored,
    )


def _saved(network: nn.Module, edge: int, where: torch.device, held: int, scans: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass; tensors that are kept twice once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor)] = tensor
        return tensor

    network.train()
    step = training_pass(network, blank_scans(network, scans, edge, where), held)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(tensor.nbytes for tensor in kept.values())


def _bytes(state: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in state.values())
