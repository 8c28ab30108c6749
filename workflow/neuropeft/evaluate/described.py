"""What networks say of a cohort's images and texts, and what of it scores images that are to be like them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuropeft import layout
from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.records import AGAIN
from neuropeft.tasks.base import Array
from neuropeft.tasks.generation import Generation

COMPARED = 1000  # training images at most that say how far apart training images are
COPIED = 1 / 3  # a nearest training image is copied if the next is more than three times as far (Yoon 2023)


class Described(NamedTuple):
    """What networks say of the images of a cohort, and of their texts."""

    scans: NDArray[np.str_]  # names [n]
    subjects: NDArray[np.str_]  # whose they are [n]
    features: Array  # by the encoder [n, D]
    pictures: Array  # by the CLIP-like model [n, E]; [n, 0] without one
    words: Array  # the same of the texts

    @property
    def places(self) -> dict[str, int]:
        """Row of each scan."""
        return {scan: place for place, scan in enumerate(self.scans.tolist())}

    def of(self, scans: Sequence[str]) -> "Described":
        """Return what is said of some scans."""
        places = self.places
        chosen = [places[scan] for scan in scans]
        named = (self.features[chosen], self.pictures[chosen], self.words[chosen])
        return Described(self.scans[chosen], self.subjects[chosen], *named)


def read_described(path: Path) -> Described:
    """Read what `write_described` wrote.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with np.load(path) as stored:
            return Described(**{name: stored[name] for name in Described._fields})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; {AGAIN}") from error


def write_scores(
    folder: Path, kind: Generation, real: Described, train: Described, features: Array, pictures: Array
) -> list[list[float]]:
    """Write the features of images beside those of the real ones; return the images' scores.

    Args:
        folder: Where they go.
        kind: Of the task.
        real: The real images of their texts, [n].
        train: The images that were learnt from.
        features: Of the images, [n, D].
        pictures: What the CLIP-like model makes of them, [n, E]; of no use without one.

    Returns:
        Rows [n] in the order of the kind's score columns.
    """
    with atomic_path(folder / layout.FEATURES_OF_IMAGES) as partial, partial.open("wb") as stream:
        np.savez(stream, scan_id=real.scans, drawn=features, real=real.features)
    columns = dict(zip(("nearest", "copied"), memorised(features, train), strict=True))
    columns["agreement"] = (pictures * real.words).sum(1) if pictures.size else np.zeros(len(features))
    rows: list[list[float]] = np.stack([columns[name] for name in kind.score_columns], axis=1).tolist()
    return rows


def memorised(drawn: Array, train: Described) -> tuple[Array, Array]:
    """Return how near images are to training images.

    Args:
        drawn: features of images [n, D].
        train: the training images, [m].

    Returns:
        The distance to the nearest training image over the median of such distances among the training
        images themselves, to those of other subjects, [n]; and whether the image is a copy: the nearest
        training image of another subject is more than three times as far [n], 0 or 1.
    """
    from scipy.spatial.distance import cdist

    subjects = train.subjects

    def nearest(some: Array, of: Array | None) -> tuple[Array, Array]:
        """Return the distances to the nearest of other subjects than `of`, and to the next subject's."""
        first, second = [], []
        for place, one in enumerate(some):
            far = cdist(one[None], train.features)[0]
            if of is not None:
                far[subjects == of[place]] = np.inf
            best = int(far.argmin())
            first.append(far[best])
            second.append(np.where(subjects == subjects[best], np.inf, far).min())
        return np.array(first), np.array(second)

    some = np.linspace(0, len(subjects) - 1, min(len(subjects), COMPARED)).round().astype(int)
    among = nearest(train.features[some], subjects[some])[0]
    usual = np.median(among[np.isfinite(among)]) if np.isfinite(among).any() else np.nan
    first, second = nearest(drawn, None)
    return first / usual, (first < COPIED * second).astype(float)
