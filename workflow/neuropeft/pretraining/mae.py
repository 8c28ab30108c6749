"""Masked-autoencoder pretraining (He et al. 2022): to fill in what is hidden of a scan."""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuropeft.backbones.patches import patchify
from neuropeft.files import atomic_path
from neuropeft.pretraining.base import Noise, Pretraining
from neuropeft.pretraining.mae3d import MAE3D, MINIMUM_VARIANCE, build_mae

SHOWN = 4  # validation scans whose reconstruction is stored
TEMPLATE_SCANS = 512  # training scans at most that make the template
FOREGROUND_SHARE = 0.5  # of scans in which a place is no background, for it to count as brain


class MaskedAutoencoding(Pretraining):
    """The mean squared error over the hidden patches that are not background."""

    shows = ("val_loss", "template_loss")
    files = ("reconstructions.npz",)
    network: MAE3D

    def build(self) -> MAE3D:
        """Return the autoencoder; where it is of the foreground alone, training scans say where that is."""
        spec = self.run.spec
        mae = build_mae(spec["backbone"], spec["decoder"], spec["mask_ratio"], spec["normalize_targets"])
        if spec["mask"] == "all":
            return mae
        return MAE3D(
            mae.encoder, mae.shape, spec["mask_ratio"], spec["normalize_targets"], self._foreground(mae)
        )

    def losses(self, network: Any, volumes: Tensor, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the summed error, [1], and the number of patches."""
        output = network(volumes, noise("mask", self.network.encoder.config.tokens))
        return output.error[None], output.scored

    def validation(self, means: Sequence[float]) -> dict[str, float]:
        """Return the loss, and that of the template."""
        return {"val_loss": means[0], "template_loss": self.template_loss}

    @cached_property
    def template_loss(self) -> float:
        """The validation loss of predicting, at each place, the mean of the training scans' patches.

        A network that does no better knows where in the brain a patch lies, and nothing of whose brain it is.
        """
        run, mae = self.run, self.network

        def added(rows: Tensor) -> tuple[Tensor, Tensor]:
            target, weight = mae.targets(run.volumes.batch(rows))  # [B, N, C * patch^dims], [B, N]
            return (target * weight[..., None]).sum(dim=0), weight.sum(dim=0)

        sums, weights = zip(*run.in_batches(added, run.some_to_train_on(TEMPLATE_SCANS)), strict=True)
        template = sum(sums) / sum(weights).clamp_min(1)[:, None]  # [N, C * patch^dims]

        def summed(volumes: Tensor, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
            target, weight = mae.targets(volumes)
            weight = weight * mae.mask(noise("mask", mae.encoder.config.tokens))
            return ((target - template).square().mean(dim=-1) * weight).sum()[None], weight.sum()

        return run.means_over_validation(summed)[0]

    def verdict(self, last: Mapping[str, float]) -> dict[str, Any]:
        """Return whether the template is beaten; print if not."""
        loss, template = last["val_loss"], last["template_loss"]
        if loss >= template:
            print(
                f"pretraining: its validation loss, {loss:.3g}, is not below {template:.3g}, that of "
                "predicting at each place the mean training patch: the encoder has learnt the template and "
                "no individual; train longer, on more scans, or start from another pretraining",
                file=sys.stderr,
                flush=True,
            )
        return {"beats_template": loss < template}

    def _foreground(self, mae: MAE3D) -> Tensor:
        """Return the places [N] that are no background in most training scans."""
        run, patch = self.run, mae.encoder.config.patch_size
        rows = torch.arange(min(run.train, TEMPLATE_SCANS))

        def brain(chosen: Tensor) -> Tensor:
            variance = patchify(run.volumes.batch(chosen), patch).var(dim=-1)  # [B, N]
            return (variance > MINIMUM_VARIANCE).float().sum(dim=0).cpu()

        held = torch.stack(run.in_batches(brain, rows)).sum(dim=0)
        return held >= FOREGROUND_SHARE * len(rows)

    @torch.inference_mode()
    def write(self, folder: Path) -> None:
        """Write the reconstructions of some validation scans, as they were masked in validation."""
        run, mae = self.run, self.network.eval()
        places = torch.arange(min(SHOWN, run.validation), device=run.device)
        volumes = run.volumes.batch(run.train + places)
        noise = run.validation_noise(places)("mask", mae.encoder.config.tokens)
        with run.autocast():  # one at a time: what training had memory for may be no more
            pictures = [mae.reconstruct(volumes[i : i + 1], noise[i : i + 1]) for i in range(len(places))]
        images, masks = (torch.cat(parts) for parts in zip(*pictures, strict=True))
        arrays = {"input": volumes, "mask": masks, "reconstruction": images}
        halves: dict[str, Any] = {name: value[:, 0].half().cpu().numpy() for name, value in arrays.items()}
        scans = [row["scan_id"] for row in run.rows[run.train :][: len(places)]]
        with atomic_path(folder / self.files[0]) as partial:
            np.savez_compressed(partial, scan_id=np.array(scans), **halves)


KIND = MaskedAutoencoding
