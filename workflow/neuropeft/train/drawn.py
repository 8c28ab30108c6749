"""Images that a cell draws from texts, and their scores; they are drawn once and kept beside predictions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neuropeft import layout, methods, numerics
from neuropeft.backbones.diffusion import Diffusion, unet_of
from neuropeft.backbones.heads import Predictor
from neuropeft.cohorts.splits import TRAIN, take_subset
from neuropeft.evaluate.described import read_described, write_scores
from neuropeft.files import atomic_path, write_tsv
from neuropeft.progress import track
from neuropeft.records import file_digest, read_record, write_record
from neuropeft.subsets import Subset
from neuropeft.tasks.generation import Generation
from neuropeft.train.describe import ImageNetworks
from neuropeft.train.seeds import derive_seed
from neuropeft.train.sources import kind_of

if TYPE_CHECKING:
    from neuropeft.train.predict import Shown

COLUMNS = ("scan_id", "image_seed")
HOW = ("steps", "guidance")  # what images depend on, of how they are drawn and scored


def predicted(
    model: Predictor, spec: Mapping[str, Any], metadata: Mapping[str, str], shown: "Shown"
) -> list[list[float]]:
    """Draw an image of the text of each scan and score it; see `supervised.predicted`.

    Images and features are beside the table of predictions, in `shown.folder`. Images that are there are not
    drawn anew if the same cell has drawn them in the same way.
    """
    kind = kind_of(spec)
    assert isinstance(kind, Generation), "no other kind names this module"
    assert shown.described is not None, "the command line asks for it"
    real = read_described(shown.described)
    texts = {row["scan_id"]: kind.words(row["y"]) for row in shown.split}
    images = draw(unet_of(model), {scan: texts[scan] for scan in shown.scans}, spec, kind.drawing, shown)
    subset, known = Subset.parse(spec["subset"]), real.places
    learnt = [row["scan_id"] for row in take_subset(shown.split, subset, kind, TRAIN)]
    train = real.of([scan for scan in learnt if scan in known])
    networks = ImageNetworks(kind.drawing, shown.volumes.device)
    features, pictures = networks.features(images), networks.pictures(images)
    return write_scores(shown.folder, kind, real.of(shown.scans), train, features, pictures)


def draw(
    unet: Diffusion,
    texts: Mapping[str, str],
    spec: Mapping[str, Any],
    drawing: Mapping[str, Any],
    shown: "Shown",
) -> NDArray[np.uint8]:
    """Return an image of each text, [n, H, W, 3], and write them and their seeds.

    A seed follows from that of the cell and from the scan: all methods and subsets start from the same noise.

    Args:
        unet: The network of a cell.
        texts: {scan: its text}.
        spec: What defines the cell.
        drawing: How images are drawn: steps and guidance.
        shown: Where they go, and the digest of the cell's delta.
    """
    code = numerics.version("backbones.diffusion", *methods.modules_of(spec["method"]))
    made_from = {
        "delta": shown.delta,
        "texts": dict(texts),
        "code": code,
        **{key: drawing[key] for key in HOW},
    }
    table = shown.folder / layout.DRAWN
    paths = [shown.folder / layout.IMAGE.format(scan=scan) for scan in texts]
    record = read_record(table)
    if record is None or record.made_from != made_from or not _whole(shown, record.files):
        seeds = [derive_seed(int(spec["seed"]), "image", scan) % 2**31 for scan in texts]
        words, at_once = list(texts.values()), shown.at_once.scans
        for first in track(range(0, len(words), at_once), -(-len(words) // at_once), "drawing"):
            part = slice(first, first + at_once)
            images = unet.draw(words[part], seeds[part], *(drawing[key] for key in HOW))
            for path, image in zip(paths[part], images, strict=True):
                with atomic_path(path) as partial:
                    Image.fromarray(image).save(partial, format="PNG")
        rows = [dict(zip(COLUMNS, pair, strict=True)) for pair in zip(texts, seeds, strict=True)]
        write_tsv(table, rows, COLUMNS)
        write_record([table, *paths], made_from)
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def _whole(shown: "Shown", files: Mapping[str, Any]) -> bool:
    """Whether files of a folder are there and hold what was written."""
    paths = {shown.folder / name: of_file[0] for name, of_file in files.items()}
    return all(path.exists() and file_digest(path) == sha256 for path, sha256 in paths.items())
