"""The tokens of a frozen backbone for every stored scan of a cohort, computed once for all probes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuropeft.backbones.base import Backbone
from neuropeft.backbones.build import build_backbone
from neuropeft.backbones.checkpoints import load_encoder
from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.progress import track
from neuropeft.records import check_whole
from neuropeft.store import open_store
from neuropeft.train.data import ROWS_AT_ONCE, load_volumes, pick_device
from neuropeft.train.memory import BatchSize, in_batches

UNTRAINED_SEED = 0
SCANS_AT_ONCE = 16  # in one forward pass


def write_features(
    backbone: Mapping[str, Any],
    encoder_path: str | Path | None,
    store_dir: str | Path,
    out: str | Path,
    device: str | None = None,
) -> None:
    """Write the tokens of all scans of a store.

    Args:
        backbone: What defines the network, as `build_backbone` takes it.
        encoder_path: Its pretrained weights; None for the untrained backbone, drawn by UNTRAINED_SEED.
        store_dir: Store of the cohort.
        out: The .npy file to write: float16 [scans, N, width] in the order of the store. Of a ViT after its
            final norm; of a CNN the places of its last feature map.
        device: As torch names it; the GPU if there is one.

    Raises:
        UserError: The encoder does not fit the backbone, or a feature is no finite number in half precision.
    """
    where = pick_device(device)
    store = open_store(store_dir)
    network = _frozen(backbone, encoder_path).to(where)
    at_once = BatchSize(SCANS_AT_ONCE)
    starts = range(0, len(store.rows), ROWS_AT_ONCE)
    # As the store: written front to back as a plain file, so that a full disk is an error and no crash.
    with atomic_path(out) as partial, partial.open("wb") as stream:
        for start in track(starts, len(starts), "features"):
            rows = range(start, min(start + ROWS_AT_ONCE, len(store.rows)))
            volumes = load_volumes(store.volumes, rows, where)

            def tokens(batch: Tensor, volumes: Any = volumes) -> Tensor:
                return network.tokens(volumes.batch(batch)).half().cpu()

            with torch.inference_mode():
                part = torch.cat(in_batches(tokens, torch.arange(len(rows)), at_once)).numpy()
            if not np.isfinite(part).all():
                raise UserError(
                    f"features of {store_dir} by {encoder_path or 'the untrained backbone'} are not finite "
                    "in half precision; check the volumes and the encoder's weights"
                )
            if start == 0:
                _write_header(stream, (len(store.rows), *part.shape[1:]))
            stream.write(part.astype("<f2").tobytes())


def _frozen(backbone: Mapping[str, Any], encoder_path: str | Path | None) -> Backbone:
    """Return the backbone in evaluation mode; what is drawn leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        network = build_backbone(backbone)
    if encoder_path is not None:
        check_whole(encoder_path)
        load_encoder(encoder_path, network)
    return network.eval()


def _write_header(stream: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": np.dtype("<f2").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
