"""Vision transformers in plain torch, and the one in 3D: fixed positions, no class token, mean pooling.

The architecture in 3D is the one that the parameter counts of Dhinagar et al. 2024, Table 1, imply: timm's
block with qkv biases, non-overlapping patches by a strided convolution, sin-cos positions that are not
learnt, a final LayerNorm, and the mean over tokens as the feature of a scan.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropeft.backbones.base import CONVOLUTIONS, SIZE, Backbone, FeatureSpec, InputSpec, MapSpec, quarters
from neuropeft.backbones.patches import patchify, resized_positions, sincos_positions
from neuropeft.errors import UserError

EPS = 1e-5  # that LayerNorms add to variances


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a `ViT3D`; ViT-B is (768, 12, 12), the paper's ViT-S is (384, 6, 8)."""

    DIMS: ClassVar[int] = 3  # axes of a scan
    width: int  # channels of a token
    depth: int  # number of blocks
    heads: int  # attention heads of a block
    mlp_ratio: float = 4.0  # hidden width of the MLP, in units of `width`
    patch_size: int = 16  # edge of a patch in voxels
    image_size: int = SIZE  # edge of a scan in voxels
    # Rate of stochastic depth in the last block; it grows linearly from 0 in the first
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be built, naming the key."""
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                "choose sizes of which one divides the other"
            )
        check_width("width", self.width, self.heads)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path is {self.drop_path}; give a rate from 0 to below 1")

    @property
    def grid(self) -> int:
        """Patches along one edge."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches of a scan, N = 125 for 80^3 voxels and patches of 16^3."""
        return self.grid**self.DIMS


def check_width(key: str, width: int, heads: int) -> None:
    """Raise `UserError` unless `heads` attention heads and sin-cos positions fit into `width`."""
    if width < 6 or width % heads:
        raise UserError(
            f"{key} {width} with {heads} heads cannot be built; give 6 or more (sine and cosine of three "
            "axes) that the number of heads divides"
        )


class Attention(nn.Module):
    """Multi-head self-attention with one fused, biased qkv projection."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the projections of `heads` heads of width/heads channels each."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # Of q, k and v, each [B, heads, n, d/heads]; a method may put a module in its place.
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, n, d/heads]
        mixed = self.attend(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make the layers width -> hidden -> width."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Multiply each channel by a learned number, 1 at the start (Touvron 2021, CaiT)."""

    def __init__(self, width: int) -> None:
        """Make the numbers of `width` channels."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        drop_path: float = 0.0,
        eps: float = EPS,
        layer_scale: bool = False,
    ) -> None:
        """Make a block whose residual branches are dropped, per scan, at rate `drop_path` in training.

        `layer_scale`: whether the branches end in a `LayerScale`; `eps` is what norms add to variances.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, n, d] to tokens [B, n, d]."""
        x = x + self._drop(self.ls1(self.attn(self.norm1(x))))
        return x + self._drop(self.ls2(self.mlp(self.norm2(x))))

    def _drop(self, branch: Tensor) -> Tensor:
        # Kept branches are scaled up so that the expected output is the same with and without dropping.
        if not self.training or self.drop_path == 0:
            return branch
        keep = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(1 - self.drop_path)
        return branch * (keep / (1 - self.drop_path))


class ViT(Backbone):
    """What encoders in 2D and 3D share: patches to tokens, blocks, final norm."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {
        "block": Block,
        "attention": Attention,
        "mlp": MLP,
        "linear": nn.Linear,
        "layernorm": nn.LayerNorm,
    }
    KIND: ClassVar[str]
    config: ViTConfig
    positions: Tensor

    def __init__(
        self, config: ViTConfig, channels: int = 1, eps: float = EPS, layer_scale: bool = False
    ) -> None:
        """Make a randomly initialised encoder (MAE's initialisation) of the shape `config`.

        Args:
            config: The shape.
            channels: Of scans.
            eps: What norms add to variances.
            layer_scale: Whether the branches of blocks end in a `LayerScale`.
        """
        super().__init__()
        self.config = config
        self.takes = InputSpec(config.DIMS, channels, config.image_size)
        self.gives = FeatureSpec(config.width, (config.grid,) * config.DIMS)
        # The blocks, from 0, whose inputs are feature maps, as in UNETR.
        self.mapped = sorted({last + 1 for last in quarters(config.depth)} - {config.depth})
        self.gives_maps = (MapSpec(config.width, config.patch_size),) * (len(self.mapped) + 1)
        self.layer_count = config.depth + 1  # the blocks, and the final norm
        width, patch = config.width, config.patch_size
        hidden = int(width * config.mlp_ratio)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        # A convolution by its weights only, so that state dicts fit other ViTs; see `_project`.
        self.patch_embed = CONVOLUTIONS[config.DIMS](channels, width, kernel_size=patch, stride=patch)
        # A buffer and no parameter: never trained or counted, but stored, as imported positions may differ.
        self.register_buffer("positions", sincos_positions(config.grid, width, config.DIMS))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, hidden, rate, eps, layer_scale) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps)
        initialise(self)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens [B, N, width] of scans [B, C, *S], after the final norm."""
        return self.above(self.embed(x), 0)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of scans [B, C, *S] after each quarter of the blocks, on their grid."""
        # By hooks on the blocks themselves: methods put in modules around them, or one around them all.
        blocks, found = self.sites("block"), []
        hooks = [
            blocks[place].module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
            for place in self.mapped
        ]
        try:
            found.append(self.encode(self.embed(x)))
        finally:
            for hook in hooks:
                hook.remove()
        gives, seen = self.gives, math.prod(self.gives.seen)
        # The class token and prompts come before those of places.
        own = [tokens[:, -seen:].reshape(-1, gives.places, gives.width) for tokens in found]
        return [tokens.transpose(1, 2).unflatten(2, gives.grid) for tokens in own]

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens [B, extra + places, width] of scans [B, C, *S], positions added."""
        return self.with_extra(
            self._project(patchify(self.prepared(x), self.config.patch_size)) + self.positions
        )

    def embed_patches(self, patches: Tensor, ids: Tensor) -> Tensor:
        """Return the tokens [B, extra + n, width] of some patches of `prepared` scans.

        Args:
            patches: [B, n, C * patch^dims].
            ids: Their places in the grid, [B, n].
        """
        return self.with_extra(self._project(patches) + self.positions[ids])

    def with_extra(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, n, width] with those of no place before them."""
        return tokens

    def given(self, tokens: Tensor) -> Tensor:
        """Return those of the last tokens [B, extra + places, width] that are given, [B, N, width]."""
        return tokens

    def prepared(self, x: Tensor) -> Tensor:
        """Return scans [B, C, *S] as patches are cut from them; `UserError` if they are of another size."""
        self.check(x)
        return x

    def restored(self, x: Tensor) -> Tensor:
        """Return the scans [B, C, *S] of which `prepared` makes `x`."""
        return x

    def encode(self, tokens: Tensor, layers: int = 0) -> Tensor:
        """Run blocks, but the first `layers`, and the final norm over any number of tokens [B, n, width]."""
        for block in self.blocks[layers:]:
            tokens = block(tokens)
        return tokens if layers == self.layer_count else self.norm(tokens)

    def below(self, x: Tensor, layers: int) -> Tensor:
        """Return the tokens [B, extra + places, width] of scans [B, C, *S] after the first blocks."""
        tokens = self.embed(x)
        for block in self.blocks[:layers]:
            tokens = block(tokens)
        return tokens if layers < self.layer_count else self.norm(tokens)

    def above(self, x: Tensor, layers: int) -> Tensor:
        """Return the tokens [B, N, width] that the blocks above, and the final norm, make of `x`."""
        return self.given(self.encode(x, layers))

    def check(self, x: Tensor) -> None:
        """Raise `UserError` unless `x` is a batch of scans of the size that this encoder takes."""
        dims, channels, size = self.takes
        if x.shape[1:] != (channels, *[size] * dims):
            raise UserError(
                f"a batch of shape {list(x.shape)} does not fit the backbone; "
                f"give [batch, {', '.join(map(str, (channels, *[size] * dims)))}] or set the backbone's "
                "image_size"
            )

    def architecture(self) -> dict[str, Any]:
        """Return the shape of the network; stochastic depth is a matter of training: weights fit with any."""
        shape = {key: value for key, value in asdict(self.config).items() if key != "drop_path"}
        return {"kind": self.KIND, **shape}

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of such a network of scans of any size, its positions interpolated to this."""
        positions = {name: state[name] for name in ("positions",) if name in state}
        sizes = self.config.grid, self.config.DIMS
        return {**state, **{name: resized_positions(value, *sizes) for name, value in positions.items()}}

    def layer_of(self, name: str) -> int:
        """Return the block of a parameter, or the layer of the final norm; 0 for what is below or new."""
        if (block := _block_of(name)) is not None:
            return block
        return self.config.depth if name.startswith("norm.") else 0

    def layers_above(self, name: str) -> int:
        """Return how many layers lie above that of the parameter `name`; above the last block's, none."""
        if (block := _block_of(name)) is not None:
            return self.config.depth - 1 - block
        return self.config.depth if name.startswith(("patch_embed.", "class_token", "positions")) else 0

    def _project(self, patches: Tensor) -> Tensor:
        # Patches do not overlap, so the convolution is one matrix product; that avoids the slow conv3d
        # kernels.
        return F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)


class ViT3D(ViT):
    """The encoder in 3D; the mean over its tokens is the feature of a scan."""

    SITES: ClassVar[Mapping[str, type[nn.Module]]] = {"embedding": nn.Conv3d, **ViT.SITES}
    KIND: ClassVar[str] = "vit"


def _block_of(name: str) -> int | None:
    """Return the block, from 0, that holds the parameter `name`; None if none does."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def initialise(module: nn.Module) -> None:
    """Initialise as MAE does: Xavier-uniform matrices, patch projection included, and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(part.weight.flatten(1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def build(settings: Mapping[str, Any]) -> ViT3D:
    """Return the randomly initialised encoder that `settings` (`ViTConfig`'s keys) describe."""
    return ViT3D(read_shape(ViTConfig, settings, "backbone"))


def read_shape(shape: Any, settings: Mapping[str, Any], label: str) -> Any:
    """Return the `shape`, a dataclass, that `settings` describe; raise `UserError` if they do not."""
    # A configured backbone names its kind, and the decoder that pretrains it, beside its own shape.
    values = {key: value for key, value in settings.items() if key not in ("kind", "decoder")}
    known = {field.name for field in fields(shape)}
    unknown = sorted(set(values) - known)
    missing = sorted({"width", "depth", "heads"} - set(values))
    if unknown or missing:
        raise UserError(f"{label} has unknown keys {unknown} and lacks {missing}; known are {sorted(known)}")
    return shape(**values)
