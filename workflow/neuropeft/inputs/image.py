"""2D images of any kind, photographs and radiographs: put into a square with their aspect kept, 0 to 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.files import MISSING, atomic_path
from neuropeft.inputs.base import Folders, InputKind, Number, OwnGrid, Row, Step, outline, standard
from neuropeft.inputs.io import ScanError, check_there
from neuropeft.inputs.picture import pixel_hash, read_picture
from neuropeft.store import pool

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
CELLS = 24  # along each edge of a signature
DARK = 0.06  # cells below this are black more or less, and so are borders to them
FLAT = 0.02  # contrast below which a cell's surroundings hold noise alone
COLUMNS = 6  # images beside each other on a contact sheet


class Image(InputKind):
    """Images in a square, black where they do not fill it; every value is between 0 and 1.

    They are not z-scored: brightness means something in most of them, and the mean and SD that a pretrained
    network was trained with belong to its start.
    """

    numbers: ClassVar[Mapping[str, Number]] = {
        "brightness": Number("brightness (mean), 0 to 1", 0.02, 0.98),
        "contrast": Number("contrast (SD), 0 to 0.5", 0.02, 0.5),
        "sharpness": Number("sharpness (log10 of the Laplacian's variance)", -5.5, 0.5),
        "aspect": Number("width / height", 0.2, 5.0),
        "shorter_side": Number("shorter side, pixels", 16, 20_000),
    }
    name = "image"
    label_columns = ("dseg", "fit")
    label_suffix = ".png"
    fit = "sharpness"
    fit_label = "sharpness"
    legend = (
        "Images as they are stored. Sharpness is that of the stored size: enlarged images have little. Lines "
        "are the borders of labels."
    )
    shown = 24

    def array(self, row: Row, size: int) -> np.ndarray:
        """Return the image [channels, size, size], 0 to 1; grey is the same in all channels."""
        pixels = _read_own(row["preproc"])
        if pixels.ndim == 2:
            return np.broadcast_to(pixels, (int(row["channels"]), *pixels.shape))
        return np.moveaxis(pixels, -1, 0)

    def label_map(self, row: Row, size: int) -> np.ndarray | None:
        """Return the label of the nearest pixel of the image's own grid, uint8 [size, size]."""
        from PIL import Image

        if row["dseg"] == MISSING:
            return None
        labels = _own_pixels(row["dseg"])
        placed = _placed(labels.shape, size, row["fit"])
        resized = Image.fromarray(labels).resize(placed.shape[::-1], Image.Resampling.NEAREST)
        square = np.zeros((size, size), np.uint8)
        square[placed.there] = np.asarray(resized)[placed.kept]
        return square

    def to_own_grid(self, row: Row, maps: np.ndarray) -> OwnGrid:
        """Interpolate maps of the square at the pixels of the image's file; 0 in what was cut off."""
        labels = _own_pixels(row["dseg"])
        placed = _placed(labels.shape, maps.shape[-1], row["fit"])
        whole = np.zeros((*placed.shape, len(maps)), np.float32)
        whole[placed.kept] = np.moveaxis(maps[:, *placed.there], 0, -1)
        own = _resized(whole, np.array(labels.shape))
        return OwnGrid(np.moveaxis(own, -1, 0), labels, [1.0, 1.0])

    def write_label_map(self, row: Row, labels: np.ndarray, path: Path) -> None:
        """Write it as PNG."""
        _save_labels(path.with_name(path.name + self.label_suffix), labels)

    def signature(self, array: np.ndarray) -> np.ndarray:
        """Return the fine detail of an image, wherever it is strong or weak, away from black.

        Images of one kind are alike as a whole: pooled as volumes are, 8,000 pairs of 292 fundus photographs
        correlate above 0.985. What they share is coarse, such as the place of a lung, or the border of the
        black around them, which is that of the camera. Both are left out.
        """
        from scipy.ndimage import minimum_filter, uniform_filter

        grey = array[0] if len(array) == 1 else np.tensordot(LUMINANCE, array.astype(np.float32), 1)
        cells = min(CELLS, len(grey))
        pooled = pool(grey[None], cells).reshape(cells, cells)
        detail = pooled - uniform_filter(pooled, 3)
        strength = np.sqrt(np.maximum(uniform_filter(detail**2, 3), 0))
        seen = np.clip(minimum_filter(pooled, 3) / DARK, 0, 1)
        return standard(seen * detail / (strength + FLAT)).ravel().astype(np.float32)

    def montage(self, rows: Mapping[str, Row]) -> Any:
        """Draw a contact sheet."""
        from matplotlib.figure import Figure

        lines = -(-len(rows) // COLUMNS)
        figure = Figure(figsize=(11, 2.2 * lines), facecolor="black")
        axes = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, (caption, row) in zip(axes, rows.items(), strict=False):
            shown = _read_own(row["preproc"])
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
            if (labels := self.label_map(row, len(shown))) is not None:
                outline(axis, labels, np.unique(labels[labels > 0]).tolist())
            axis.set_title("\n".join(caption.split("   ")), color="white", fontsize=6, pad=2)
        figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.35 / (2.2 * lines), wspace=0.03, hspace=0.25)
        return figure


def into_square(pixels: np.ndarray, size: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """Put an image into the middle of a square, its aspect kept.

    Args:
        pixels: [H, W] or [H, W, 3], uint8 or float32 within 0..1.
        size: edge of the square in pixels.
        fit: `pad` makes the longer side fill it and leaves the rest black; `crop` the shorter side, and cuts
            the rest off.

    Returns:
        float32 [size, size] or [size, size, 3] within 0..1, and the image alone, before it is padded.
    """
    placed = _placed(pixels.shape[:2], size, fit)
    image = _resized(pixels, np.array(placed.shape))[placed.kept]
    square = np.zeros((size, size, *pixels.shape[2:]), np.float32)
    square[placed.there] = image
    return square, image


class _Placed(NamedTuple):
    """How an image lies in a square: it is resized to `shape`, and what is `kept` of it lies `there`."""

    shape: tuple[int, int]
    kept: tuple[slice, slice]
    there: tuple[slice, slice]


def _placed(own: tuple[int, ...], size: int, fit: str) -> _Placed:
    """Return how an image of the shape `own` lies in a square of this edge; see `into_square`."""
    edge = max(own) if fit == "pad" else min(own)
    height, width = (max(1, round(side * (size / edge))) for side in own)
    kept, there = zip(*(_middles(side, size) for side in (height, width)), strict=True)
    return _Placed((height, width), kept, there)


def _middles(side: int, size: int) -> tuple[slice, slice]:
    """Return the part of a side that fits into an edge, and where on it that lies."""
    cut, before, length = max(side - size, 0) // 2, max(size - side, 0) // 2, min(side, size)
    return slice(cut, cut + length), slice(before, before + length)


def _resized(pixels: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return an image resized without aliasing, as float32 within 0..1."""
    from PIL import Image

    scale = 255 if pixels.dtype == np.uint8 else 1
    bands = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    resized = [
        np.asarray(
            Image.fromarray(band.astype(np.float32)).resize(
                (int(shape[1]), int(shape[0])), Image.Resampling.BILINEAR
            )
        )
        for band in bands
    ]
    return np.clip(np.stack(resized, -1) / scale, 0, 1).reshape(*shape, *pixels.shape[2:])


def _measured(image: np.ndarray) -> dict[str, float]:
    """Return what QC shows of a resized image [h, w] of luminance."""
    around = np.pad(image, 1, mode="edge")
    laplacian = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * image
    return {
        "brightness": float(image.mean()),
        "contrast": float(image.std()),
        "sharpness": float(np.log10(max(laplacian.var(), 1e-9))),
    }


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    pixels = read_picture(row["path"])
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise ScanError(f"{row['path']} is {'all black' if high == 0 else 'constant'}: it shows nothing")
    height, width = pixels.shape[:2]
    dseg = _label_map(row, (height, width), folders, settings)
    square, image = into_square(pixels, int(settings["size"]), settings["fit"])
    if square.ndim == 3 and settings["channels"] == 1:
        square = square @ LUMINANCE
    path = folders.derivative(row, "desc-preproc_image.png")
    _save(path, square)
    return {
        "raw_sha1": pixel_hash(pixels),
        "preproc": str(path),
        "dseg": dseg,
        "fit": settings["fit"],
        "channels": settings["channels"],
        **_measured(image if image.ndim == 2 else image @ LUMINANCE),
        "aspect": width / height,
        "shorter_side": min(width, height),
    }


def _label_map(row: Row, image: tuple[int, int], folders: Folders, settings: Mapping[str, Any]) -> str:
    """Check the mask of an image of this shape; keep it as it is, if its values are learnt."""
    path = row["mask"]
    if path == MISSING:
        return MISSING
    check_there(path, row["mask_size"])
    mask = read_picture(path)
    if mask.shape[:2] != image:
        of_mask, of_image = (f"{width} x {height}" for height, width in (mask.shape[:2], image))
        raise ScanError(f"the mask {path} has {of_mask} pixels, its image {of_image}: give its own")
    if not (allowed := settings.get("labels")):
        return MISSING
    if mask.dtype != np.uint8 or mask.ndim == 3:
        raise ScanError(f"the mask {path} has colours or more than 8 bits: give one of grey values up to 255")
    if (threshold := settings.get("threshold")) is not None:
        mask = np.where(mask > threshold, allowed[0], 0).astype(np.uint8)
    if unknown := sorted(set(np.unique(mask).tolist()) - {0, *allowed}):
        raise ScanError(
            f"the mask {path} holds {', '.join(map(str, unknown[:5]))}, which the `labels` of its cohort's "
            "input do not list: list them there, fix the mask, or give a `threshold` if its borders are soft"
        )
    kept = folders.derivative(row, "desc-own_dseg.png")
    _save_labels(kept, mask)
    return str(kept)


def _save_labels(path: Path, labels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as partial:
        Image.fromarray(labels).save(partial, format="PNG")


def _save(path: Path, square: np.ndarray) -> None:
    """Write values of 0..1 as PNG: grey with 16 bits, colours with 8, of which most files have no more."""
    from PIL import Image

    top = (65535, np.uint16) if square.ndim == 2 else (255, np.uint8)
    with atomic_path(path) as partial:
        Image.fromarray(np.rint(square * top[0]).astype(top[1])).save(partial)


def _read_own(path: str) -> np.ndarray:
    """Read an image that `_save` wrote, as float32 within 0..1; raise `UserError` if it cannot be read."""
    pixels = _own_pixels(path)
    return pixels.astype(np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 65535)


def _own_pixels(path: str) -> np.ndarray:
    """Read the pixels of a PNG that a step wrote; raise `UserError` if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise fault(error, path) or UserError(
            f"cannot read {path}: {error}; delete its cohort's chunk tables to make it again"
        ) from error


STEP = Step("prepare_images", _work, ("preproc", "dseg", "fit", "channels", *Image.numbers))
KIND = Image()
