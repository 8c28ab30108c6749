"""Reading 2D images: PNG, JPEG and TIFF files become pixels, turned upright, or are refused with a reason."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.inputs.io import ScanError, absence

FORMATS = ("PNG", "JPEG", "TIFF")
DICOM_MAGIC = slice(128, 132)  # where a DICOM file says that it is one
SMALLEST_SIDE = 8  # pixels
LARGEST_SIDE = 20_000
# Below what Pillow takes for a bomb (89 million): about 1 GB while it is decoded and resized.
MOST_PIXELS = 80_000_000
WINDOW = (0.005, 0.995)  # quantiles of the pixels that become black and white where a file has no window
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0


def read_picture(path: str | Path) -> np.ndarray:
    """Read a PNG, JPEG, TIFF or DICOM file that holds one image, whatever its name ends in.

    Its EXIF orientation is applied. Transparent pixels lie on black. Palettes, CMYK and other colours become
    RGB, by no colour profile. Grey of more than 8 bits (and of floats) is windowed by `WINDOW`; of colours of
    16 bits the upper 8 are taken. What DICOM files need besides is in `inputs.dicom`.

    Returns:
        [H, W], or [H, W, 3] where the channels differ: uint8, or float32 within 0..1 of what had more bits.

    Raises:
        ScanError: the file is missing, damaged, not one image, or of a size that is refused; the message says
            which.
        UserError: it may not be read, its disk or network failed, or a package is missing.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ScanError(absence(path))
        with path.open("rb") as stream:
            if not (start := stream.read(DICOM_MAGIC.stop)):
                raise ScanError(f"{path} is empty, not a readable image")
        if start[DICOM_MAGIC] == b"DICM":
            from neuropeft.inputs.dicom import read_dicom

            pixels = read_dicom(path)
        else:
            pixels = _read(path)
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble on
        # Excluded, an image would stay so when its disk is back.
        if stop := fault(error, str(path)):
            raise stop from error
        raise ScanError(f"{path} is truncated or damaged: {error or type(error).__name__}") from error
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # grey that is stored as colours
    return np.ascontiguousarray(pixels)


def pixel_hash(pixels: np.ndarray) -> str:
    """Return the SHA-1 of an image as it was read, in whatever format it was stored."""
    digest = hashlib.sha1(f"{pixels.shape} {pixels.dtype}".encode(), usedforsecurity=False)
    digest.update(pixels.data)
    return digest.hexdigest()


def check_size(path: Path, width: int, height: int) -> None:
    """Raise `ScanError` if an image is too small or too large, before its pixels are read."""
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_SIDE:
        raise ScanError(
            f"{path} has {width} x {height} pixels; every side needs {SMALLEST_SIDE} to {LARGEST_SIDE:,}"
        )
    if width * height > MOST_PIXELS:
        raise ScanError(f"{path} has {width} x {height} pixels, {_TOO_MANY}")


_TOO_MANY = f"more than the {MOST_PIXELS // 10**6} million that are read; shrink it or cut it into parts"


def windowed(values: np.ndarray) -> np.ndarray:
    """Return grey values, float32, as 0..1 between their `WINDOW` quantiles."""
    low, high = np.quantile(values, WINDOW)
    if low == high:  # nearly all pixels are alike
        low, high = values.min(), values.max()
    return np.clip((values - np.float32(low)) / np.float32(high - low if high > low else 1), 0, 1)


def checked_finite(path: Path, values: np.ndarray) -> np.ndarray:
    """Return values as float32; raise `ScanError` if some are NaN or infinite."""
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ScanError(
            f"{path} has {np.count_nonzero(~np.isfinite(values))} pixels that are NaN or infinite"
        )
    return values


def _read(path: Path) -> np.ndarray:
    """Return the pixels of a file that Pillow reads."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        if fault(error, str(path)):
            raise
        raise ScanError(f"{path} is not a readable PNG, JPEG, TIFF or DICOM image; convert it") from error
    except Image.DecompressionBombError as error:
        raise ScanError(f"{path} has {_TOO_MANY}") from error
    with image:
        check_size(path, *image.size)
        # A JPEG photograph may carry previews of itself (MPO); the first image is the photograph.
        frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
        if frames != 1:
            raise ScanError(f"{path} is animated or holds {frames} images; give each its own file and row")
        white_is_zero = getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            values = checked_finite(path, np.asarray(upright))
            # Pillow inverts this where there are 8 bits, and not where there are more.
            return windowed(-values if white_is_zero else values)
        return np.asarray(_opaque(upright))


def _opaque(image: Any) -> Any:
    """Return an image of 8 bits as grey (L) or RGB."""
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
