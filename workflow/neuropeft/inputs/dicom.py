"""Reading single-frame DICOM images: windowed as their header says; nothing else of the header is read."""

from collections.abc import MutableSequence
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft.errors import UserError
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.picture import check_size, checked_finite, windowed

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# All that is read of a header: names, dates and numbers of patients are no part of it.
TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *PIXELS,
]
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_")


def read_dicom(path: Path) -> np.ndarray:
    """Read a DICOM file that holds one frame.

    Grey is rescaled and windowed as its header says, by the first of several windows; without one, by
    `picture.WINDOW`. MONOCHROME1, in which white is low, is inverted.

    Returns:
        float32 [H, W] within 0..1, or uint8 [H, W, 3] of colours.

    Raises:
        ScanError: it holds no image, several frames, or pixels that cannot be decoded here.
        UserError: pydicom is missing.
        Exception: of many types, where the file is damaged.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, pixel_array
    except ImportError as error:
        raise UserError(f"{path} is DICOM; install what reads it: `pip install pydicom`") from error

    data = dcmread(path, specific_tags=TAGS)
    if not any(name in data for name in PIXELS):
        raise ScanError(f"{path} is DICOM without an image")
    if (frames := int(data.get("NumberOfFrames") or 1)) != 1:
        raise ScanError(f"{path} is DICOM of {frames} frames; give each its own file and row")
    check_size(path, data.Columns, data.Rows)
    colours = str(data.PhotometricInterpretation)
    if colours not in GREY and not (colours.startswith(COLOURS) and data.BitsAllocated == 8):
        raise ScanError(f"{path} is DICOM of {data.BitsAllocated} bits {colours}; convert it to PNG")
    try:
        pixels = pixel_array(data)
    except RuntimeError as error:  # of compressed pixels only
        syntax = data.file_meta.TransferSyntaxUID.name
        raise ScanError(
            f"{path} cannot be decoded ({syntax}); if it is whole, decompress it, for example by dcmdjpeg"
        ) from error
    if colours not in GREY:
        return pixels
    values = _shown(checked_finite(path, apply_modality_lut(pixels, data)), data)
    return 1 - values if colours == "MONOCHROME1" else values


def _shown(values: np.ndarray, data: Any) -> np.ndarray:
    """Return rescaled grey values as 0..1, by the table or the window of the header (PS3.3, C.11.2)."""
    if data.get("VOILUTSequence"):
        return _looked_up(values, data.VOILUTSequence[0])
    centre, width = (_first(data.get(key)) for key in ("WindowCenter", "WindowWidth"))
    function = str(data.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width <= (function == "LINEAR"):
        return windowed(values)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))).astype(np.float32)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return np.clip((values - np.float32(centre)) / np.float32(width) + np.float32(0.5), 0, 1)


def _looked_up(values: np.ndarray, lut: Any) -> np.ndarray:
    # By hand: pydicom counts the entries of a table of 8 bits in 8 bits, though it may have more.
    length, first, bits = map(int, lut.LUTDescriptor)
    table = lut.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "u1" if len(table) == length else "<u2")
    places = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return np.asarray(table, np.float32)[places] / np.float32(2**bits - 1)


def _first(value: Any) -> float | None:
    """Return a number of a header, the first of several; None where there is none."""
    if isinstance(value, MutableSequence):
        value = value[0] if value else None
    return None if value is None else float(value)
