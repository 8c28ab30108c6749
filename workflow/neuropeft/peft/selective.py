"""Methods that train a selection of the backbone's own parameters."""

from torch import nn

from neuropeft.errors import UserError
from neuropeft.models.vit3d import Attention, ViT3D


def train_all(backbone: nn.Module) -> None:
    """Train every parameter: `full` from pretrained weights, `scratch` from random ones."""
    backbone.requires_grad_(True)


def train_attention(backbone: nn.Module) -> None:
    """Train the qkv and out projections, weights and biases, of every block (paper, Table 1 'Attention')."""
    for module in require_vit(backbone, "attention").modules():
        if isinstance(module, Attention):
            module.requires_grad_(True)


def train_layernorm(backbone: nn.Module) -> None:
    """Train scale and shift of every LayerNorm, the final one included (paper, Table 1 'LayerNorm')."""
    for module in require_vit(backbone, "layernorm").modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def require_vit(backbone: nn.Module, kind: str) -> ViT3D:
    """Return `backbone` if it is a transformer; raise `UserError` naming the method `kind` if it is not."""
    if not isinstance(backbone, ViT3D):
        raise UserError(
            f"method {kind} needs a ViT backbone; use scratch or full for {type(backbone).__name__}"
        )
    return backbone
