"""Reading and writing 3D images: a file comes out in RAS order, as float32, or is refused with a reason."""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.files import atomic_path

GZIP_MAGIC = b"\x1f\x8b"
MGH_FLAG = slice(28, 30)  # bytes of a .mgz that say whether it knows its orientation
SUFFIXES = (".nii", ".nii.gz", ".mgz")
VOXEL_MM = (0.1, 10.0)
SMALLEST_AXIS = 8  # voxels
LARGEST_AXIS = 2048
# What the image reader raises; the first two are of a file that it does not know.
UNREADABLE = (
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
    *(OSError, EOFError, zlib.error, ValueError, OverflowError),
)


class ScanError(UserError):
    """One scan that cannot be processed, with the reason; the others go on."""


def read_scan(path: str | Path, channels: int = 1) -> nib.Nifti1Image:
    """Read a scan and check that it is one 3D image of finite, varying intensities.

    DICOM is out of scope: convert it first, for example with dcm2niix.

    Args:
        path: a .nii, .nii.gz or .mgz file. A 4D file with a single volume counts as 3D.
        channels: how many volumes a 4D file has to have; its last axis are channels then.

    Returns:
        The scan as float32, its axes reordered and flipped to the nearest RAS order, its header bare (free
        text of the file may name the patient).

    Raises:
        ScanError: the file is missing, damaged or not one 3D image; the message says which.
        UserError: it may not be read, or its disk or network failed.
    """
    image = read_image(path, channels)
    data = np.asarray(image.dataobj)
    if not np.isfinite(data).all():
        raise ScanError(f"{path} has {np.count_nonzero(~np.isfinite(data))} voxels that are NaN or infinite")
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise ScanError(f"{path} is {'all zero' if low == 0 else f'constant ({low:g} everywhere)'}")
    return image


def read_image(path: str | Path, channels: int = 1, reorder: bool = True) -> nib.Nifti1Image:
    """Read an image of whatever values, in RAS order or, without `reorder`, as the file has it.

    Raises as `read_scan` does.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ScanError(f"{path} is not .nii, .nii.gz or .mgz (convert DICOM first, for example by dcm2niix)")
    try:
        if not path.is_file():
            raise ScanError(absence(path))
        start, size = _content(path)
        image = nib.load(path)
        if not isinstance(image, nib.spatialimages.SpatialImage):
            raise ScanError(f"{path} is not an image of voxels")
        _check_geometry(path, image, start, channels)
        assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy), "a file's voxels are not read yet"
        promised = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
        if promised > size:
            raise ScanError(
                f"{path} is truncated or damaged: its header promises {promised:,} bytes, it has {size:,}"
            )
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
    except UNREADABLE as error:
        # Excluded, a scan would stay so when its disk is back.
        if stop := fault(error, str(path)):
            raise stop from error
        unknown = isinstance(error, UNREADABLE[:2])
        kind = "not a readable image" if unknown else "truncated or damaged"
        raise ScanError(f"{path} is {kind}: {error}") from error
    data = data.reshape(*data.shape[:3], *([channels] if channels > 1 else []))
    return to_ras(data, _affine(image)) if reorder else nib.Nifti1Image(data, _affine(image))


def voxel_hash(image: nib.Nifti1Image) -> str:
    """Return the SHA-1 of a scan as it was read, in whatever format and axis order it was stored."""
    data = np.ascontiguousarray(image.dataobj, "<f4")
    return hashlib.sha1(f"{data.shape}".encode() + data.tobytes(), usedforsecurity=False).hexdigest()


def absence(path: str | Path) -> str:
    """Return why a scan or mask is none that may be read."""
    if os.path.isfile(path):
        return f"{path} may not be read; make it readable"
    if os.path.isdir(path):
        return f"{path} is a folder; name the file in it"
    link = "a link to a file that is not there (fetch it, for example by `datalad get`)"
    return f"{path} is {link if os.path.islink(path) else 'missing'}"


def check_there(path: str, size: str) -> None:
    """Check that a file is what it was when its cohort was indexed: there, or not.

    Args:
        path: a scan or mask.
        size: as the index has it; -1 if it was not there or might not be read.

    Raises:
        ScanError: it was not.
        UserError: it was and is not here, as on a node that has not mounted its disk.
    """
    if size == "-1":
        raise ScanError(absence(path))
    if not os.path.isfile(path):
        raise UserError(
            f"{path} was there when the workflow started and is not on {os.uname().nodename}; check that its "
            "disk is mounted there, and run again"
        )


def read_own(path: str | Path) -> nib.Nifti1Image:
    """Read an image that an earlier step wrote, as float32.

    Raises:
        UserError: it cannot be read, which is no fault of its scan.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        return nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    except UNREADABLE as error:
        raise fault(error, str(path)) or UserError(
            f"cannot read {path}: {error}; delete its cohort's chunk tables to make it again"
        ) from error


def save_image(path: str | Path, data: np.ndarray, affine: np.ndarray, space: str = "scanner") -> None:
    """Write `data` atomically as NIfTI, of its own type, with `affine` in the named space."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=space)
    image.set_qform(affine, code=space, strip_shears=True)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as partial:
        image.to_filename(partial)


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Return the edge lengths of a voxel in mm, [3]."""
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def to_ras(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Return an image whose axes are permuted and flipped to the nearest right-anterior-superior order."""
    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    return nib.Nifti1Image(np.ascontiguousarray(image.dataobj), image.affine)


def _content(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file, as if it were not compressed, and how many it has.

    A compressed file is read to its end, where its checksum is; the image reader stops before.
    """
    if path.suffix == ".nii":
        return b"", path.stat().st_size
    with path.open("rb") as raw:
        magic = raw.read(2)
    if magic and magic != GZIP_MAGIC:
        raise ScanError(f"{path} is not compressed as its name says; it may be a pointer to a file elsewhere")
    with gzip.open(path) as stream:
        start = part = stream.read(1 << 24)
        while part:
            part = stream.read(1 << 24)
        return start[: MGH_FLAG.stop], stream.tell()


def _affine(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """Return where the voxels lie: the qform of a NIfTI file where its sform says nothing."""
    if isinstance(image, nib.Nifti1Image) and image.header["qform_code"] > 0 and not _is_place(image.affine):
        return image.get_qform()
    return image.affine


def _is_place(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) >= 1e-9)


def _check_geometry(path: Path, image: nib.spatialimages.SpatialImage, start: bytes, channels: int) -> None:
    shape, affine = image.shape, _affine(image)
    volumes = math.prod(shape[3:])
    if len(shape) < 3 or min(shape[:3], default=0) == 1:
        raise ScanError(f"{path} is a 2D image (shape {shape}); a 3D scan is needed")
    if volumes != channels:
        needed = "a 3D scan is" if channels == 1 else f"{channels} channels are"
        raise ScanError(f"{path} is a 4D image of {volumes} volumes; {needed} needed")
    if image.get_data_dtype().fields is not None or image.get_data_dtype().kind == "c":
        raise ScanError(f"{path} holds colours or complex numbers, not intensities")
    if min(shape[:3]) < SMALLEST_AXIS or max(shape[:3]) > LARGEST_AXIS:
        raise ScanError(
            f"{path} has shape {shape[:3]}; every axis needs {SMALLEST_AXIS} to {LARGEST_AXIS} voxels"
        )
    if not _is_place(affine):
        raise ScanError(f"{path} has a singular affine: its header places the voxels nowhere")
    unplaced = "" if any(start[MGH_FLAG]) else "goodRASFlag is 0"  # its reader gives 1 for 0
    if isinstance(image, nib.Nifti1Image):
        codes = image.header["sform_code"], image.header["qform_code"]
        unplaced = "" if any(codes) else "sform and qform codes are 0"
    if unplaced:
        raise ScanError(f"{path} has no orientation ({unplaced}): left cannot be told from right")
    sizes = voxel_sizes(affine)
    if sizes.min() < VOXEL_MM[0] or sizes.max() > VOXEL_MM[1]:
        raise ScanError(
            f"{path} has voxels of {by(sizes)} mm; {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm are usual"
        )


def by(values: np.ndarray) -> str:
    """Return the numbers of an error along three axes."""
    return " x ".join(f"{value:.3g}" for value in values)
