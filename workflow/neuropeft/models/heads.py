"""A backbone with a linear head: the network that every cell fine-tunes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEAD_STD = 0.01  # MAE's linear probe; small enough that training starts from the bias
EPS = 1e-6  # added to variances


class FeatureNorm(nn.Module):
    """Standardise features [B, width] over scans, without parameters (He 2022, MAE, linear probing).

    Registered brains look alike: what a backbone says of all of them is some hundred times larger than what
    it says of one, and a head on such features learns next to nothing in the few steps that small data allow.

    Training standardises by the batch, evaluation by statistics that `measure` takes. Running means, as of a
    batch norm, lag behind a backbone that is trained, by many times the little that tells scans apart.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        """Make the statistics of `width` features, mean 0 and variance 1 until they are measured."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features, standardised by the batch in training and as measured otherwise."""
        if self.training and len(features) > 1:  # one scan, as an epoch's last batch may be, has no spread
            return F.batch_norm(features, None, None, training=True, eps=EPS)
        return F.batch_norm(features, self.mean, self.variance, eps=EPS)

    def measure(self, features: Tensor) -> None:
        """Take the statistics of these features [n, width] (PreciseBN, Wu & Johnson 2021)."""
        variance, mean = torch.var_mean(features, dim=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)


class Predictor(nn.Module):
    """`backbone` (scans -> features), their standardisation and a linear `head` (features -> outputs)."""

    def __init__(self, backbone: nn.Module, width: int, outputs: int) -> None:
        """Put a head of `outputs` outputs on a backbone that gives `width` features.

        Outputs are logits or standardised regression values, of which 0 is the best constant: the bias
        starts there.
        """
        super().__init__()
        self.backbone = backbone
        self.feature_norm = FeatureNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """Return the outputs [B, outputs], in float32 under autocast too, of scans [B, 1, S, S, S].

        With `parts`, the backbone sees one part of the batch at a time and nothing but its features is kept:
        the backward pass computes the rest again, part by part (Gao et al. 2021, GradCache). That costs a
        second forward pass and changes neither outputs nor gradients, since the features are standardised
        over the whole batch as ever; only batch norms inside a backbone (densenet121) see the parts.
        """
        if parts == 1:
            features = self.backbone(x)
        else:
            pieces = x.tensor_split(parts)
            features = torch.cat([checkpoint(self.backbone, piece, use_reentrant=False) for piece in pieces])
        with torch.autocast(features.device.type, enabled=False):
            return self.head(self.feature_norm(features.float()))

    def train(self, mode: bool = True) -> "Predictor":
        """Set training mode, in which a part that has parameters but none to train stays in evaluation mode.

        A frozen batch norm must not move its statistics, and noise in a frozen part regularises nothing.
        """
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self
