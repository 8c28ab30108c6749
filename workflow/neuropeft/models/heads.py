"""A backbone with a linear head: the network that every cell fine-tunes."""

from torch import Tensor, nn

HEAD_STD = 0.01  # MAE's linear probe; small enough that training starts from the bias


class Predictor(nn.Module):
    """`backbone` (scans -> features) and a linear `head` (features -> outputs)."""

    def __init__(self, backbone: nn.Module, width: int, outputs: int) -> None:
        """Put a head of `outputs` outputs on a backbone that gives `width` features.

        Outputs are logits or standardised regression values; the bias starts at 0, for the trainer to set.
        """
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, outputs] of scans [B, 1, S, S, S]."""
        return self.head(self.backbone(x))

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
