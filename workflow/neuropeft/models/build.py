"""Build networks from the plain mappings that a configuration holds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neuropeft.errors import UserError
from neuropeft.models.heads import Head, Predictor
from neuropeft.models.mae3d import MAE3D, DecoderConfig
from neuropeft.models.vit3d import ViT3D, ViTConfig

if TYPE_CHECKING:
    from neuropeft.models.densenet import DenseNet121Features

DEFAULT_SIZE = 80  # edge of a scan in voxels


def build_vit(backbone: Mapping[str, Any]) -> ViT3D:
    """Return the randomly initialised encoder that `backbone` (`ViTConfig`'s keys) describes."""
    if backbone.get("kind") != "vit":
        raise UserError(f"backbone kind {backbone.get('kind')!r} has no transformer encoder; give kind: vit")
    return ViT3D(_from_mapping(ViTConfig, backbone, "backbone"))


def build_predictor(
    backbone: Mapping[str, Any], outputs: int, pool: str = "mean", norm: str = "fixed"
) -> Predictor:
    """Return a randomly initialised `Predictor` of `outputs` outputs.

    Args:
        backbone: `{"kind": "vit", ...keys of ViTConfig}` or `{"kind": "densenet121", "image_size": ...}`.
        outputs: Width of the head: 1 for a binary or regression task, else the number of classes.
        pool: How tokens become features, as in `Head`.
        norm: How features are standardised, as in `Head`.
    """
    network, width, tokens = build_backbone(backbone)
    return Predictor(network, Head(width, tokens, outputs, pool, norm))


def build_backbone(backbone: Mapping[str, Any]) -> "tuple[ViT3D | DenseNet121Features, int, int]":
    """Return a randomly initialised backbone, the width of its tokens and how many a scan has.

    Raises:
        UserError: `backbone` is of an unknown kind or shape.
    """
    kind = backbone.get("kind")
    if kind == "vit":
        encoder = build_vit(backbone)
        return encoder, encoder.config.width, encoder.config.tokens
    if kind == "densenet121":
        from neuropeft.models.densenet import DENSENET121_WIDTH, DenseNet121Features, places

        return DenseNet121Features(), DENSENET121_WIDTH, places(int(backbone.get("image_size", DEFAULT_SIZE)))
    raise UserError(f"backbone kind {kind!r} is unknown; give vit or densenet121")


def build_mae(
    backbone: Mapping[str, Any], decoder: Mapping[str, Any], mask_ratio: float, normalize_targets: bool = True
) -> MAE3D:
    """Return a randomly initialised masked autoencoder whose `encoder` is the backbone to pretrain.

    Args:
        backbone: As for `build_predictor`, of kind `vit`.
        decoder: Keys of `DecoderConfig`.
        mask_ratio: Share of patches hidden.
        normalize_targets: As in `MAE3D`.
    """
    shape = _from_mapping(DecoderConfig, decoder, "decoder")
    return MAE3D(build_vit(backbone), shape, mask_ratio, normalize_targets)


def _from_mapping(kind: Any, values: Mapping[str, Any], label: str) -> Any:
    # A configured backbone names its kind, and the decoder that pretrains it, beside its own shape.
    values = {key: value for key, value in values.items() if key not in ("kind", "decoder")}
    unknown = sorted(set(values) - set(kind.__dataclass_fields__))
    missing = sorted({"width", "depth", "heads"} - set(values))
    if unknown or missing:
        raise UserError(
            f"{label} has unknown keys {unknown} and lacks {missing}; "
            f"known are {sorted(kind.__dataclass_fields__)}"
        )
    return kind(**values)
