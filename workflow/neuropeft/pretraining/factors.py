"""An encoder that reads a synthetic brain's anatomy: maps of it, patch by patch, and named numbers."""

from torch import Tensor, nn

from neuropeft.backbones.vit import ViT3D

MAPPED = 6  # shares of grey matter, white matter and CSF; displacement along three axes


class FactorReader(nn.Module):
    """`encoder` with a linear reader on every token and one on their mean."""

    def __init__(self, encoder: ViT3D, factors: int) -> None:
        """Put readers on `encoder`: of `MAPPED` numbers per token and of `factors` numbers per scan."""
        super().__init__()
        self.encoder = encoder
        self.read_maps = nn.Linear(encoder.config.width, MAPPED)
        self.read_factors = nn.Linear(encoder.config.width, factors)
        for reader in (self.read_maps, self.read_factors):
            nn.init.trunc_normal_(reader.weight, std=0.01)
            nn.init.zeros_(reader.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps [B, N, MAPPED] and factors [B, factors], standardised, of scans [B, 1, S, S, S]."""
        tokens = self.encoder.tokens(x)  # [B, N, width]
        return self.read_maps(tokens), self.read_factors(tokens.mean(dim=1))
