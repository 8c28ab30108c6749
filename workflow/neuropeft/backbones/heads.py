"""A backbone with a head: the network that every cell fine-tunes.

Registered brains look alike: what a backbone says of all of them is some hundred times larger than what it
says of one. A head therefore works on tokens or features that are standardised first, by statistics that are
the same for every batch, so that a scan's outputs never depend on its neighbours.
"""

import torch
from torch import Tensor, nn

from neuropeft.backbones.base import Backbone
from neuropeft.errors import UserError

HEAD_STD = 0.01  # MAE's linear probe; small enough that training starts from the bias
EPS = 1e-6  # added to variances
QUERIES = 4  # of attentive pooling
REDUCED = 16  # channels that concatenated tokens are reduced to

STILL = "still"  # what a module is called true that stays in evaluation mode though it is trained

POOLS = ("mean", "attentive", "concat")
NORMS = ("fixed", "refreshed", "layer")


class FeatureNorm(nn.Module):
    """Standardise features [B, *shape] by statistics of the training scans, without parameters.

    What MAE's linear probe does with the statistics of the batch (He 2022, appendix A.1). Those of a batch
    are unsteady where batches are small, and a head that learns by them learns the batch.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, *shape: int) -> None:
        """Make statistics of features of this shape: mean 0 and variance 1 until they are measured."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features [B, *shape], standardised."""
        return (features - self.mean) * (self.variance + EPS).rsqrt()

    def measure(self, features: Tensor) -> None:
        """Take the statistics of these features [n, *shape]."""
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)


class AttentivePool(nn.Module):
    """Learned queries, each of which averages the tokens by its own weights (Lee 2019, Set Transformer)."""

    def __init__(self, width: int) -> None:
        """Make queries for tokens of `width` channels; they start by averaging all places alike."""
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(QUERIES, width))
        nn.init.normal_(self.queries, std=0.02)

    def forward(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Average `values` by the weights that `tokens` give, both [B, N, width].

        Returns:
            The averages of all queries, [B, QUERIES * width].
        """
        logits = tokens @ self.queries.T / tokens.shape[-1] ** 0.5  # [B, N, QUERIES]
        return (logits.softmax(dim=1).transpose(1, 2) @ values).flatten(1)


class Head(nn.Module):
    """Tokens of a backbone -> outputs: pooling, standardisation, a linear layer."""

    def __init__(
        self, width: int, tokens: int, outputs: int, pool: str = "mean", norm: str = "fixed"
    ) -> None:
        """Make a head.

        Outputs are logits or standardised regression values, of which 0 is the best constant: the bias starts
        there.

        Args:
            width: Channels of a token.
            tokens: Tokens of a scan, N.
            outputs: Outputs of a scan.
            pool: `mean` averages the tokens, as the paper does; `attentive` averages them by learned weights;
                `concat` reduces each by one shared projection and keeps its place.
            norm: `fixed` standardises by the training scans' statistics at the start, `refreshed` measures
                them again at each validation, `layer` is a trained LayerNorm (MAE's fc_norm).
        """
        super().__init__()
        if pool not in POOLS or norm not in NORMS:
            raise UserError(f"pool {pool!r} or norm {norm!r} is unknown; give one of {POOLS} and of {NORMS}")
        self.pool = pool
        shape = (width,) if pool == "mean" else (tokens, width)
        self.norm: nn.Module = nn.LayerNorm(width, eps=EPS) if norm == "layer" else FeatureNorm(*shape)
        if pool == "attentive":
            self.attention = AttentivePool(width)
        if pool == "concat":
            self.reduce = nn.Linear(width, REDUCED, bias=False)
            nn.init.orthogonal_(self.reduce.weight)
        features = {"mean": width, "attentive": QUERIES * width, "concat": tokens * REDUCED}[pool]
        self.linear = nn.Linear(features, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=HEAD_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the outputs [B, outputs] for tokens [B, N, width]."""
        return self.linear(self.features(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """Return what the linear layer sees of tokens [B, N, width]: [B, features]."""
        if self.pool == "mean":
            return self.norm(tokens.mean(dim=1))
        values = self.norm(tokens)  # each place by its own statistics
        if self.pool == "attentive":
            return self.attention(tokens, values)
        return self.reduce(values).flatten(1)  # [B, N * REDUCED]

    def measure(self, tokens: Tensor) -> None:
        """Take the statistics of training scans' tokens [n, N, width], if this head standardises by them."""
        if isinstance(self.norm, FeatureNorm):
            self.norm.measure(tokens.mean(dim=1) if self.pool == "mean" else tokens)


class Predictor(nn.Module):
    """`backbone` (scans -> tokens) and `head` (tokens -> outputs).

    Attributes:
        added: Names of the tensors that a method has put in.
        touched: Names of the backbone's own modules in which a method trains a tensor, or has put one in.
        by_tokens: Whether its head works on the last tokens alone, so that layers below can be cut off.
    """

    added: frozenset[str] = frozenset()
    touched: frozenset[str] = frozenset()
    by_tokens: bool = True

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        """Put a head on a backbone whose method `tokens` maps scans to tokens [B, N, width]."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, outputs], in float32 under autocast too, of scans [B, 1, S, S, S]."""
        return self.outputs(self.backbone.tokens(x))

    def raw(self, x: Tensor) -> Tensor:
        """Return the same in whatever precision it is computed; autocast knows no meta device."""
        return self.head(self.backbone.tokens(x))

    def outputs(self, tokens: Tensor) -> Tensor:
        """Return the outputs [B, outputs] of tokens [B, N, width]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.head(tokens.float())

    def train(self, mode: bool = True) -> "Predictor":
        """Set training mode, in which a part that has parameters but none to train stays in evaluation mode.

        A frozen batch norm must not move its statistics, and noise in a frozen part regularises nothing. So
        does a part that a method has told to be `STILL`.
        """
        super().train(mode)
        if mode:
            for module in self.modules():
                if is_still(module):
                    module.eval()
        return self


def is_still(module: nn.Module) -> bool:
    """Whether a part stays in evaluation mode in training: it has nothing to train, or is told so."""
    parameters = list(module.parameters())
    frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return frozen or getattr(module, STILL, False)
