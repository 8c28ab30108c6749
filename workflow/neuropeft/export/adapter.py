"""Adapters in the format of Hugging Face's library PEFT.

PEFT's LoRA of a fused projection has one A and one B, ours has a pair for each of q, k and v. Below each
other and beside each other, with zeros in B where a pair has no rows, they are one pair of a larger rank that
computes the same. So are all updates of weights by a matrix of low rank.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.checkpoints import save_tensors
from neuropeft.backbones.heads import Predictor
from neuropeft.export.network import SAME, Spec, plain_network
from neuropeft.methods.lora import DoRALinear, MatrixLinear

BASE = "base.safetensors"


@torch.no_grad()
def write_adapter(folder: Path, model: Predictor, spec: Spec, scans: Tensor) -> bool:
    """Write the adapter of a network's backbone in PEFT's format, and beside it the network without it.

    The model is in evaluation mode; of `scans` [B, C, *S], PEFT must compute the same.

    Returns:
        False, and nothing is written, if PEFT is not installed or has no such adapter.
    """
    try:
        import peft
    except ImportError:
        return False
    base = plain_network(spec)
    state = model.state_dict()
    # Linear layers of PEFT's tuners have the plain layer inside.
    own_names = {name: name if name in state else _inside(name) for name in base.state_dict()}
    if not state.keys() >= set(own_names.values()):
        return False
    plain = {name: state[own].clone() for name, own in own_names.items()}
    base.load_state_dict(plain)
    own = getattr(model.backbone, "peft_config", None)
    config = own["default"] if own else _low_rank_config(model.backbone)
    if config is None:
        return False
    theirs = peft.get_peft_model(base.backbone, config).eval()
    if own:
        theirs.base_model.model.load_state_dict(model.backbone.state_dict())
    else:
        _copy_low_rank(model.backbone, theirs.base_model.model)
    if not torch.allclose(base.head(theirs.tokens(scans)), model(scans), **SAME):
        return False
    theirs.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty card, beside the model's own
    save_tensors(folder / BASE, plain, {})
    return True


def _inside(name: str) -> str:
    owner, _, last = name.rpartition(".")
    return f"{owner}.base_layer.{last}"


def _low_rank_config(backbone: Backbone) -> Any:
    """Return PEFT's configuration of our low-rank updates; None if there are none."""
    from peft import LoraConfig

    layers = _low_rank(backbone)
    if not layers:
        return None
    ranks = {name: len(layer.down()) for name, layer in layers.items()}
    return LoraConfig(
        target_modules=list(layers),
        rank_pattern=ranks,
        alpha_pattern={name: layer.scale * ranks[name] for name, layer in layers.items()},
        use_dora=any(isinstance(layer, DoRALinear) for layer in layers.values()),
    )


def _low_rank(backbone: Backbone) -> dict[str, MatrixLinear]:
    return {name: part for name, part in backbone.named_modules() if isinstance(part, MatrixLinear)}


def _copy_low_rank(backbone: Backbone, theirs: Any) -> None:
    for name, layer in _low_rank(backbone).items():
        other = theirs.get_submodule(name)
        other.lora_A["default"].weight.copy_(layer.down())
        other.lora_B["default"].weight.copy_(layer.up())
        if isinstance(layer, DoRALinear):
            other.lora_magnitude_vector["default"].weight.copy_(layer.updated().norm(dim=1))
