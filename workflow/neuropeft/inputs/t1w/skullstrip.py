"""Brain masks, four ways: by deepbet, by HD-BET, as given, or from a scan whose skull is gone already."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.files import MISSING
from neuropeft.inputs.base import Folders, Row, Step
from neuropeft.inputs.io import ScanError, check_there, read_own, save_image, voxel_sizes
from neuropeft.inputs.t1w.scan import bright, commonest, load_mask, on_faces

METHODS = ("deepbet", "hd-bet", "given", "stripped")
FAINT = 0.05  # of bright tissue above the background
MOST_FAINT = 1.2  # times the clear foreground: a stripped brain has a few voxels as dark as its background
MOST_CUT = 0.03  # of the faces; heads cover 4 to 8 %, brains 0, or 1 % where the volume ends at the brain
PLAUSIBLE_ML = (200.0, 4000.0)  # a newborn's brain is above, no brain is outside
MOST_STRIPPED_ML = 2200.0  # a scan that shows more than any brain still shows its skull, and its face


def brain_mask(image: nib.Nifti1Image, method: str, given: str | Path | None = None) -> np.ndarray:
    """Find the brain of a scan.

    Args:
        image: bias-corrected scan, float32, RAS order.
        method: `deepbet` (Fisch et al. 2024, doi:10.1016/j.compbiomed.2024.108845; its weights ship in its
            wheel), `hd-bet` (Isensee et al. 2019, doi:10.1002/hbm.24750; an extra that downloads its weights
            on first use), `given` (read `given`) or `stripped` (the scan shows brain only).
        given: path of a mask on the scan's own grid, for method `given`.

    Returns:
        uint8 [X, Y, Z], 1 in the brain.

    Raises:
        ScanError: no brain was found, the given mask does not fit, or the scan is not stripped.
        UserError: HD-BET is not installed, a model cannot be loaded, or `method` is unknown.
    """
    if method == "deepbet":
        mask = _deepbet_mask(image)
    elif method == "hd-bet":
        mask = _hdbet_mask(image)
    elif method == "given":
        if given is None:
            raise ScanError("there is no brain mask for this scan, and skull-stripping is set to `given`")
        mask = load_mask(given, image)
    elif method == "stripped":
        mask = _foreground(image)
        if (shown := mask_ml(mask, image.affine)) > MOST_STRIPPED_ML:
            raise ScanError(
                f"the scan is not skull-stripped: it shows {shown:.0f} ml, more than any brain, so probably "
                "its face too; choose another `skull_strip` for its cohort"
            )
    else:
        raise UserError(f"unknown skull-stripping {method!r}; choose from {', '.join(METHODS)}")
    volume = mask_ml(mask, image.affine)
    if not PLAUSIBLE_ML[0] <= volume <= PLAUSIBLE_ML[1]:
        raise ScanError(f"no brain was found: the mask by {method} holds {volume:.0f} ml")
    return mask


def mask_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the volume of a mask in millilitres."""
    return float(np.count_nonzero(mask) * voxel_sizes(affine).prod() / 1000)


def _deepbet_mask(image: nib.Nifti1Image) -> np.ndarray:
    model = _deepbet()
    try:
        _, mask, _ = model.run(image)
    except (AssertionError, ValueError) as error:  # its two ways to say that nothing looks like a brain
        raise ScanError(f"deepbet found no brain: {error}") from error
    return np.ascontiguousarray(mask.dataobj, np.uint8)


@cache
def _deepbet() -> Any:
    from deepbet import BrainExtraction

    with _loading("deepbet"):
        # On the CPU, for which the rule asks: as many jobs as cores would meet on one GPU, beside trainings.
        return BrainExtraction(no_gpu=True)


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Stop the job, and exclude no scan, if a model does not load."""
    try:
        yield
    except Exception as error:
        raise fault(error, model) or UserError(
            f"the weights of {model} cannot be loaded: {type(error).__name__}: {error}; install it again"
        ) from error


def _hdbet_mask(image: nib.Nifti1Image) -> np.ndarray:
    predictor = _hdbet()
    from HD_BET.hd_bet_prediction import hdbet_predict

    with tempfile.TemporaryDirectory() as folder:
        scan, brain = Path(folder, "scan.nii.gz"), Path(folder, "brain.nii.gz")
        image.to_filename(scan)
        hdbet_predict(
            str(scan), str(brain), predictor, keep_brain_mask=True, compute_brain_extracted_image=False
        )
        return load_mask(Path(folder, "brain_bet.nii.gz"), image)


@cache
def _hdbet() -> Any:
    try:
        import torch
        from HD_BET.checkpoint_download import maybe_download_parameters
        from HD_BET.hd_bet_prediction import get_hdbet_predictor
    except ImportError as error:
        raise UserError(
            "skull-stripping by hd-bet needs the package hd-bet: `pip install 'neuropeft[hd-bet]'` (it "
            "downloads its weights on first use), or choose deepbet"
        ) from error
    with _loading("hd-bet"):
        maybe_download_parameters()
        return get_hdbet_predictor(device=torch.device("cpu"))  # see `_deepbet`


def _foreground(image: nib.Nifti1Image) -> np.ndarray:
    """Return the largest connected part of what differs from the background, its holes filled.

    Where much is nearly background, as in scans that were stripped and then resampled by splines, all of it
    is. That also holds for the air around a head, but a head is cut by a face of its volume.
    """
    from scipy.ndimage import binary_fill_holes, label

    data = np.asarray(image.dataobj)
    faces = on_faces(data)
    background, _ = commonest(faces)
    foreground = data != background
    faint = FAINT * (bright(data) - background)
    clear = np.abs(data - background) > faint
    if np.count_nonzero(foreground) > MOST_FAINT * np.count_nonzero(clear):
        if np.mean(np.abs(faces - background) > faint) > MOST_CUT:
            raise ScanError("the scan is not skull-stripped: the head reaches the faces of its volume")
        foreground = clear
    parts, _ = label(foreground)
    sizes = np.bincount(parts.ravel())
    if len(sizes) < 2:
        raise ScanError("the scan is not skull-stripped: it has no background")
    largest = 1 + int(sizes[1:].argmax())
    mask = binary_fill_holes(parts == largest)
    if mask.mean() > 0.9:
        raise ScanError("the scan is not skull-stripped: nearly all of it differs from the background")
    return mask.astype(np.uint8)


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    method = settings["skull_strip"]
    if method == "given" and row["mask"] != MISSING:
        check_there(row["mask"], row["mask_size"])
    image = read_own(folders.scan(row))
    mask = brain_mask(image, method, None if row["mask"] == MISSING else row["mask"])
    path = folders.derivative(row, "desc-brain_mask.nii.gz")
    save_image(path, mask, image.affine)
    return {"brain_mask": str(path), "mask_ml": mask_ml(mask, image.affine)}


STEP = Step("skull_strip", _work, ("brain_mask", "mask_ml"))
