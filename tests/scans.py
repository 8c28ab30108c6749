"""Scans with a known truth, the template brain moved by a transform, and how chunks of scans are run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from neuropeft.config import Cohort
from neuropeft.files import write_tsv
from neuropeft.inputs import step_of
from neuropeft.inputs.base import Folders
from neuropeft.inputs.steps import run_step
from neuropeft.inputs.t1w.ninedof import NineDof
from neuropeft.inputs.t1w.template import mni152_brain

MOVED = NineDof(tuple(np.radians([20.0, -15.0, 30.0])), (40.0, -25.0, 60.0), (0.9, 1.05, 0.85))
STILL = NineDof((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LEFT_SPOT = np.array([-40.0, -20.0, 30.0])  # template mm, in the left hemisphere


def brain_scan(transform: NineDof = STILL, voxel_mm=(2.0, 2.0, 2.0), axes="RAS", spot=0.0, extent=190.0):
    """Return a skull-stripped scan of the template brain that `transform` leads to.

    `axes` is the order of the voxel axes; `spot` is added within 8 mm of `LEFT_SPOT`.
    """
    template = mni152_brain()
    data = 1000 * np.asarray(template.dataobj)
    if spot:
        places = nib.affines.apply_affine(template.affine, np.moveaxis(np.indices(data.shape), 0, -1))
        data = data + spot * (np.linalg.norm(places - LEFT_SPOT, axis=-1) < 8)
    shape = np.round(extent / np.array(voxel_mm)).astype(int)
    affine = np.diag([*voxel_mm, 1.0])
    centre = transform.matrix @ [0, -18, 8, 1]
    affine[:3, 3] = centre[:3] - (shape - 1) / 2 * voxel_mm
    to_template = np.linalg.inv(template.affine) @ np.linalg.inv(transform.matrix) @ affine
    voxels = nib.affines.apply_affine(to_template, np.moveaxis(np.indices(shape), 0, -1))
    moved = map_coordinates(data, np.moveaxis(voxels, -1, 0), order=1).astype(np.float32)
    image = nib.Nifti1Image(moved, affine)
    wanted = nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))


def save(path: Path, image: nib.Nifti1Image) -> Path:
    """Write a scan with its orientation codes set, as scanners do."""
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def brain_of(image: nib.Nifti1Image) -> np.ndarray:
    """Return the mask of a skull-stripped scan."""
    return (np.asarray(image.dataobj) > 1).astype(np.uint8)


def distance_mm(one: NineDof, other: NineDof) -> float:
    """Return how far apart two transforms take points of the brain, on average, in template mm."""
    points = np.random.default_rng(0).uniform([-60, -90, -40], [60, 60, 70], (500, 3))
    back = np.linalg.inv(one.matrix) @ other.matrix
    return float(np.linalg.norm(nib.affines.apply_affine(back, points) - points, axis=1).mean())


def index_row(subject: str, path: Path, session="n/a", chunk="x0", mask="n/a") -> dict[str, object]:
    """Return the row of a scan in its cohort's index."""
    scan_id = f"sub-{subject}" + ("" if session == "n/a" else f"_ses-{session}")
    row = {"scan_id": scan_id, "subject": subject, "session": session, "path": path, "mask": mask}
    return row | {"size": 1 if path.is_file() else -1, "mask_size": 1, "chunk": chunk}


def write_index(root: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the index of the cohort in `root`."""
    rows = list(rows)
    write_tsv(root / "scans.tsv", rows, list(rows[0]))


def run_chunk(root: Path, chunk: str, settings: Mapping[str, Any], kind: str = "t1w") -> Path:
    """Take a chunk of the cohort in `root` through all steps of its kind; return its last chunk table."""
    folder, table, first = root / "chunks" / chunk, root / "scans.tsv", chunk
    folders = Folders(root / "derivatives", folder / "temporary")
    for step, module in Cohort(table="scans.tsv", input=kind).input.steps.items():
        run_step(step_of(module), table, first, folders, settings, folder / f"{step}.tsv")
        table, first = folder / f"{step}.tsv", None
    return table
