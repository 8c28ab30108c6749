"""Features of images by local networks, and how well images agree with texts."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuropeft.errors import UserError
from neuropeft.evaluate.described import Described
from neuropeft.files import atomic_path, read_tsv
from neuropeft.progress import track
from neuropeft.records import file_digest
from neuropeft.store import open_store
from neuropeft.tasks.base import Array
from neuropeft.tasks.generation import FID, Generation
from neuropeft.train.data import pick_device

AT_ONCE = 32  # images, or texts
# Of StyleGAN2-ADA's inception-2015-12-05.pt, Inception of TensorFlow as Heusel et al. 2017 used it.
FIDS_OWN = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class ImageNetworks:
    """The networks that a task names."""

    def __init__(self, drawing: Mapping[str, Any], device: torch.device) -> None:
        """Look at nothing yet."""
        self.drawing, self.device = drawing, device

    def features(self, images: NDArray[np.uint8]) -> Array:
        """Return the features [n, D] of images [n, H, W, 3]."""
        if self.drawing["encoder"].endswith(FID):
            return _in_parts(self._by_fid, images)
        network, prepare = self._encoder
        if hasattr(network, "get_image_features"):
            return _in_parts(lambda some: _tensor(network.get_image_features(**prepare(some))), images)
        return _in_parts(lambda some: _pooled(network(**prepare(some))), images)

    def pictures(self, images: NDArray[np.uint8]) -> Array:
        """Return what the CLIP-like model makes of images, of length 1, [n, E]; [n, 0] without one."""
        if not self.drawing["agreement"]:
            return np.empty((len(images), 0))
        network, prepare, _ = self._clip
        return _in_parts(lambda some: _unit(_tensor(network.get_image_features(**prepare(some)))), images)

    def words(self, texts: Sequence[str]) -> Array:
        """Return the same of texts; what is too long is cut off."""
        if not self.drawing["agreement"]:
            return np.empty((len(texts), 0))
        network, _, tokens = self._clip
        return _in_parts(lambda some: _unit(_tensor(network.get_text_features(**tokens(some)))), texts)

    @cached_property
    def _fid(self) -> Any:
        path = self.drawing["encoder"]
        if file_digest(path) != FIDS_OWN:
            raise UserError(
                f"{path} is not FID's own network, inception-2015-12-05.pt of StyleGAN2-ADA: give that, or "
                "the folder of an encoder as transformers stores it"
            )
        return torch.jit.load(path, map_location=self.device).eval()

    def _by_fid(self, images: NDArray[np.uint8]) -> Tensor:
        found: Tensor = self._fid(
            torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2), return_features=True
        )
        return found

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        return self._loaded("encoder")

    @cached_property
    def _clip(self) -> tuple[Any, Any, Any]:
        network, prepare = self._loaded("agreement")
        folder = self.drawing["agreement"]
        if not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
            raise UserError(
                f"{folder} is no CLIP-like model, which knows images and texts: give another folder"
            )
        from transformers import AutoTokenizer

        with _read_from(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        longest = network.config.text_config.max_position_embeddings

        def tokens(texts: Sequence[str]) -> Any:
            found = tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
            )
            return found.to(self.device)

        return network, prepare, tokens

    def _loaded(self, key: str) -> tuple[Any, Any]:
        """Return the network of a folder, and what makes its input of images."""
        folder = self.drawing[key]
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                f"{folder} is read by transformers ({error}): `pip install 'neuropeft[generation]'`"
            ) from error
        with _read_from(folder):
            network = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
            prepare = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)

        def prepared(images: NDArray[np.uint8]) -> Any:
            return prepare(list(images), return_tensors="pt").to(self.device)

        return network.eval().to(self.device), prepared


@contextmanager
def _read_from(folder: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is no folder of a network with its preprocessor, as transformers stores it: {error}"
        ) from error


def _in_parts(compute: Any, some: Any) -> Array:
    with torch.inference_mode():
        parts = [
            compute(some[first : first + AT_ONCE]).float().cpu() for first in range(0, len(some), AT_ONCE)
        ]
    return torch.cat(parts).numpy()


def _tensor(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def _pooled(output: Any) -> Tensor:
    """Return the features [B, D] of a network: what it has pooled, or the mean over its tokens."""
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


def _unit(found: Tensor) -> Tensor:
    return found / found.norm(dim=1, keepdim=True)


def write_described(labels: Path, store_dir: Path, drawing: Mapping[str, Any], out: Path) -> None:
    """Write what the networks of a task say of all images of a cohort that have a text; see `Described`."""
    store = open_store(store_dir)
    rows = [row for row in read_tsv(labels) if row["scan_id"] in set(store.scan_ids)]
    networks = ImageNetworks(drawing, pick_device())
    features, pictures = [], []
    for first in track(range(0, len(rows), AT_ONCE), -(-len(rows) // AT_ONCE), "features"):
        some = [store.index_of(row["scan_id"]) for row in rows[first : first + AT_ONCE]]
        stored = np.moveaxis(store.volumes[some].astype(np.float32), 1, -1)  # [b, H, W, 3] within 0..1
        images = np.rint(stored * 255).astype(np.uint8)
        features.append(networks.features(images))
        pictures.append(networks.pictures(images))
    found = Described(
        np.array([row["scan_id"] for row in rows]),
        np.array([row["subject"] for row in rows]),
        np.concatenate(features),
        np.concatenate(pictures),
        networks.words([Generation.words(row["y"]) for row in rows]),
    )
    with atomic_path(out) as partial, partial.open("wb") as stream:
        np.savez(stream, **found._asdict())
