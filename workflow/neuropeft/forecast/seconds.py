"""How long a training is likely to take on a GPU, from its operations.

The numbers are those of one H100 (README, "On a GPU"): steps of 16 to 512 scans of ViT-S and ViT-B, by full
fine-tuning, LoRA, LayerNorm and MAE, took 0.8 to 1.2 times as long as this says. Other GPUs and CNNs have not
been measured.
"""

from neuropeft.config import Backbone

SHARE = 0.2  # of the peak, which a step's products reach
STEP_SECONDS = 0.005  # of a step, whatever it computes: launches, random changes, the optimiser
CONVOLUTIONS = 10  # times as long as a transformer's products
APART = 2  # times more or less is no surprise


def training_seconds(backbone: Backbone, flops: float, steps: float, batch_size: int, peak: float) -> float:
    """Return how many seconds so many steps are likely to take.

    Args:
        backbone: what is trained.
        flops: operations that a step takes for a scan, as `train.flops` counts them.
        steps: steps; those of a search add up to parts.
        batch_size: scans of a step.
        peak: operations a second that the GPU reaches at most, see `peaks`.
    """
    slower = CONVOLUTIONS if "conv" in backbone.provides else 1
    return steps * (STEP_SECONDS + slower * batch_size * flops / (SHARE * peak))


def forward_seconds(backbone: Backbone, size: int, scans: float, peak: float) -> float:
    """Return how many seconds scans of edge `size` are likely to pass through a backbone, once."""
    return scans * backbone.forward_flop(size) / (SHARE * peak)
