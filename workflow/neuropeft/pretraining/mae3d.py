"""A masked autoencoder around a `ViT` in 2D or 3D (He et al. 2022; in 3D, SelfMedMAE, Zhou et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.build import build_backbone
from neuropeft.backbones.patches import patch_view, patchify, sincos_positions, unpatchify
from neuropeft.backbones.vit import Block, ViT, check_width, initialise, read_shape
from neuropeft.errors import UserError

# Variance, in units of a z-scored scan's, below which a patch is background: its voxels differ by less than
# about a hundredth of the scan's standard deviation, and scaling that to unit variance would make noise the
# target.
MINIMUM_VARIANCE = 1e-4
ROUNDING = 1e-9  # 125 * (1 - 0.8) is 25, and not a little less


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the light decoder; (384, 8, 12) beside ViT-B, (384, 4, 8) beside the paper's ViT-S."""

    width: int = 384
    depth: int = 8
    heads: int = 12

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be built."""
        check_width("decoder width", self.width, self.heads)


class MAEOutput(NamedTuple):
    """What one pass of the autoencoder gives."""

    # Scalar, squared error of the masked, non-empty patches, a mean over voxels and summed over patches
    error: Tensor
    scored: Tensor  # scalar, how many patches these are
    # [B, M, C * patch^dims] predicted voxels of the masked patches, normalised if the targets are
    prediction: Tensor
    masked: Tensor  # [B, M] grid places of those patches
    mask: Tensor  # [B, N] bool, true where a patch was masked

    @property
    def loss(self) -> Tensor:
        """The mean squared error over the masked, non-empty patches, scalar."""
        return self.error / self.scored.clamp_min(1)


class MAE3D(nn.Module):
    """Encode the visible patches of a scan, decode all places, predict the voxels of the masked ones."""

    positions: Tensor
    foreground: Tensor

    def __init__(
        self,
        encoder: ViT,
        decoder: DecoderConfig,
        mask_ratio: float = 0.75,
        normalize_targets: bool = True,
        foreground: Tensor | None = None,
    ) -> None:
        """Put a decoder of the shape `decoder` behind `encoder`.

        Args:
            encoder: The network to pretrain; it keeps its own weights.
            decoder: Shape of the decoder, which is thrown away after pretraining.
            mask_ratio: Share of patches hidden; N * (1 - mask_ratio), rounded down, stay visible, 31 of 125
                at 0.75.
            normalize_targets: Predict each patch's voxels scaled to its own mean 0 and variance 1.
            foreground: [N] bool, the places that hold brain; the others are neither shown nor predicted. None
                takes all places.
        """
        super().__init__()
        self.encoder, self.shape = encoder, decoder
        self.normalize_targets = normalize_targets
        places = torch.ones(encoder.config.tokens, dtype=torch.bool) if foreground is None else foreground
        self.register_buffer("foreground", places, persistent=False)
        self.used = int(places.sum())
        self.visible = int(self.used * (1 - mask_ratio) + ROUNDING)
        if not 0 < self.visible < self.used:
            raise UserError(
                f"mask_ratio {mask_ratio} leaves {self.visible} of {self.used} patches visible; "
                "give a ratio that hides some and leaves some"
            )
        width, patch = decoder.width, encoder.config.patch_size
        self.decoder_embed = nn.Linear(encoder.config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # A class token has a position of zeros, as in MAE.
        positions = sincos_positions(encoder.config.grid, width, encoder.config.DIMS)
        extra = torch.zeros(encoder.gives.extra, width)
        self.register_buffer("positions", torch.cat([extra, positions]), persistent=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, decoder.heads, int(width * encoder.config.mlp_ratio)) for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, encoder.takes.channels * patch**encoder.config.DIMS)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            initialise(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> MAEOutput:
        """Mask, encode, decode and score a batch.

        Args:
            x: Scans [B, C, *S].
            noise: [B, N] random numbers whose smallest per scan, 1 - ratio of them, say what stays visible;
                drawn here on the device of `x` when not given.

        Returns:
            The error, the prediction and what was masked.
        """
        x = self.encoder.prepared(x)
        if noise is None:
            noise = torch.rand(x.shape[0], self.encoder.config.tokens, device=x.device)
        order = self._order(noise)  # [B, used]: visible places first
        visible, masked = order[:, : self.visible], order[:, self.visible :]
        latent = self.encoder.encode(self.encoder.embed_patches(self._patches(x, visible), visible))
        prediction = self._decode(latent, order)
        error, scored = self._error(prediction, self._patches(x, masked))
        return MAEOutput(error, scored, prediction, masked, self.mask(noise))

    def mask(self, noise: Tensor) -> Tensor:
        """Return which patches `noise` [B, N] masks, bool [B, N]."""
        visible = self._order(noise)[:, : self.visible]
        return self.foreground.expand(noise.shape).scatter(1, visible, False)

    def _order(self, noise: Tensor) -> Tensor:
        # Background places come last, and are cut off.
        return torch.where(self.foreground, noise, 2.0).argsort(dim=1)[:, : self.used]

    def targets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what to predict at every place of scans, and which of it counts.

        Args:
            x: Scans [B, C, *S].

        Returns:
            [B, N, C * patch^dims] and [B, N].
        """
        return self._target(patchify(self.encoder.prepared(x), self.encoder.config.patch_size).float())

    def _target(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        # Background patches have no pattern to normalise: they count nothing, rather than divide by nearly
        # zero.
        if not self.normalize_targets:
            return patches, torch.ones(patches.shape[:2], device=patches.device)
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        weight = (variance > MINIMUM_VARIANCE).squeeze(-1).float()
        return (patches - mean) * variance.clamp_min(MINIMUM_VARIANCE).rsqrt(), weight

    @torch.no_grad()
    def reconstruct(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return a picture of what the network fills in, and where.

        A network trained on normalised targets predicts a patch's pattern, not its level and contrast; those
        are taken from the true patch, so the picture flatters the network by exactly two numbers a patch.

        Args:
            x: Scans [B, C, *S].
            noise: As in `forward`.

        Returns:
            The scans with their masked patches replaced by predictions, [B, C, *S], and the mask in the
            same shape, bool, true where voxels were predicted.
        """
        patch, dims = self.encoder.config.patch_size, self.encoder.config.DIMS
        output, prepared = self(x, noise), self.encoder.prepared(x)
        masked, prediction = output.masked, output.prediction.to(x.dtype)
        if self.normalize_targets:
            target = self._patches(prepared, masked)
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            prediction = prediction * variance.sqrt() + mean
        places = masked[..., None].expand_as(prediction)
        image = patchify(prepared, patch).scatter(1, places, prediction)
        mask = unpatchify(output.mask[..., None].expand_as(image), patch, dims)
        # What is visible stays as it is, to the bit.
        return torch.where(mask, self.encoder.restored(unpatchify(image, patch, dims)), x), mask

    def _patches(self, x: Tensor, ids: Tensor) -> Tensor:
        # Taking the wanted patches straight from the scan copies each voxel once and the hidden ones never.
        config = self.encoder.config
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        places = [ids // config.grid**axis % config.grid for axis in reversed(range(config.DIMS))]
        taken = patch_view(x, config.patch_size)[rows, *places]  # [B, n, C, p, ...]
        return taken.flatten(2)

    def _decode(self, latent: Tensor, order: Tensor) -> Tensor:
        # Attention does not care for the order of tokens, only their positions count: they stay sorted into
        # visible and masked, which saves restoring the order, and the last layer runs on the masked ones
        # alone.
        (batch, tokens), extra = order.shape, self.encoder.gives.extra
        hidden = self.mask_token.expand(batch, tokens - self.visible, -1)
        embedded = self.decoder_embed(latent)
        positions = self.positions[F.pad(order + extra, (extra, 0))]  # the class token is the first
        x = torch.cat([embedded, hidden.to(embedded.dtype)], dim=1) + positions  # [B, extra + N, width]
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, extra + self.visible :]))  # [B, M, C * patch^dims]

    def _error(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        target, weight = self._target(target.float())
        error = (prediction.float() - target).square().mean(dim=-1)  # [B, M]
        return (error * weight).sum(), weight.sum()


def build_mae(
    backbone: Mapping[str, Any], decoder: Mapping[str, Any], mask_ratio: float, normalize_targets: bool = True
) -> MAE3D:
    """Return a randomly initialised masked autoencoder whose `encoder` is the backbone to pretrain.

    `decoder` holds keys of `DecoderConfig`, `mask_ratio` is the share of patches hidden.
    """
    shape = read_shape(DecoderConfig, decoder, "decoder")
    encoder = build_backbone(backbone)
    assert isinstance(encoder, ViT), "no other backbone gives tokens"
    return MAE3D(encoder, shape, mask_ratio, normalize_targets)
