"""The four rules of preprocessing: each takes a chunk of scans one step on and tells what became of each.

A chunk table carries all scans of the chunk. A scan that cannot be processed becomes a row with status
`failed`, the step and the reason; the later steps pass it on. What is no scan's fault (see `errors.fault`)
stops the job instead.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.files import MISSING, atomic_path, read_tsv, write_tsv
from neuropeft.preprocess.io import ScanError, check_there, load_scan, read_own, save_image, voxel_hash
from neuropeft.preprocess.measures import template_numbers, transform_numbers
from neuropeft.preprocess.n4 import correct_bias
from neuropeft.preprocess.ninedof import load_itk, save_itk
from neuropeft.preprocess.register import register
from neuropeft.preprocess.resample import to_template
from neuropeft.preprocess.skullstrip import brain_mask, mask_ml
from neuropeft.preprocess.template import AFFINE, mni152_brain
from neuropeft.progress import track

Row = dict[str, str]
Work = Callable[[Row], Mapping[str, str | float]]

SCAN_COLUMNS = (
    *("scan_id", "subject", "session", "path", "mask", "mask_size"),
    *("raw_sha1", "status", "step", "reason"),
)
SKULL_STRIP_COLUMNS = (*SCAN_COLUMNS, "brain_mask", "mask_ml")
REGISTER_COLUMNS = (
    *SKULL_STRIP_COLUMNS,
    *("transform", "scale_x", "scale_y", "scale_z", "rotation_deg", "shear"),
)
RESAMPLE_COLUMNS = (*REGISTER_COLUMNS, "preproc", "template_correlation", "template_overlap")


def run_n4(scans_tsv: str | Path, chunk: str, out_dir: str | Path, table: str | Path) -> None:
    """Correct the bias field of the chunk's scans.

    Args:
        scans_tsv: index of the cohort.
        chunk: which rows of it.
        out_dir: gets {scan_id}.nii, uncompressed: compressing float32 takes longer than N4 itself and these
            files are temporary.
        table: chunk table to write.

    Raises:
        UserError: the index has no such chunk, or the job cannot go on.
    """
    rows = [row for row in read_tsv(scans_tsv) if row["chunk"] == chunk]
    if not rows:
        raise UserError(f"{scans_tsv} has no chunk {chunk}; run the workflow again, which rewrites it")
    start = [{**row, "status": "ok", "step": MISSING, "reason": MISSING} for row in rows]
    Path(out_dir).mkdir(parents=True, exist_ok=True)

    def work(row: Row) -> Mapping[str, str]:
        check_there(row["path"], row["size"])
        scan = load_scan(row["path"])
        corrected = correct_bias(scan)
        save_image(_n4_path(out_dir, row), np.asarray(corrected.dataobj), corrected.affine)
        return {"raw_sha1": voxel_hash(scan)}

    _run("n4", start, work, table, SCAN_COLUMNS)


def run_skull_strip(
    table_in: str | Path, n4_dir: str | Path, method: str, derivatives: str | Path, table_out: str | Path
) -> None:
    """Find the brains of the chunk's scans; masks go to `derivatives`.

    Args:
        table_in: chunk table of the step before.
        n4_dir: folder of bias-corrected scans.
        method: see `skullstrip.brain_mask`.
        derivatives: BIDS-derivatives folder of the cohort.
        table_out: chunk table to write.

    Raises:
        UserError: the job cannot go on.
    """

    def work(row: Row) -> Mapping[str, str | float]:
        if method == "given" and row["mask"] != MISSING:
            check_there(row["mask"], row["mask_size"])
        image = read_own(_n4_path(n4_dir, row))
        mask = brain_mask(image, method, None if row["mask"] == MISSING else row["mask"])
        path = derivative(derivatives, row, "desc-brain_mask.nii.gz")
        save_image(path, mask, image.affine)
        return {"brain_mask": str(path), "mask_ml": mask_ml(mask, image.affine)}

    _describe(Path(derivatives))
    _run("skull_strip", read_tsv(table_in), work, table_out, SKULL_STRIP_COLUMNS)


def run_register(
    table_in: str | Path, n4_dir: str | Path, derivatives: str | Path, table_out: str | Path
) -> None:
    """Register the chunk's brains to the template; transforms go to `derivatives`. See `run_skull_strip`."""
    template = mni152_brain()

    def work(row: Row) -> Mapping[str, str | float]:
        image = read_own(_n4_path(n4_dir, row))
        transform = register(image, _brain(row), template)
        path = derivative(derivatives, row, "from-T1w_to-MNI152_mode-image_xfm.txt")
        save_itk(transform, path)
        return {"transform": str(path), **transform_numbers(transform)}

    _run("register", read_tsv(table_in), work, table_out, REGISTER_COLUMNS)


def run_resample(
    table_in: str | Path, n4_dir: str | Path, derivatives: str | Path, table_out: str | Path
) -> None:
    """Resample the chunk's brains to the template grid, into `derivatives`. See `run_skull_strip`."""
    template = mni152_brain()

    def work(row: Row) -> Mapping[str, str | float]:
        image = read_own(_n4_path(n4_dir, row))
        volume = to_template(image, _brain(row), load_itk(row["transform"]), template)
        path = derivative(derivatives, row, "space-MNI152_desc-preproc_T1w.nii.gz")
        save_image(path, volume, AFFINE, space="mni")
        return {"preproc": str(path), **template_numbers(volume)}

    _run("resample", read_tsv(table_in), work, table_out, RESAMPLE_COLUMNS)


def derivative(derivatives: str | Path, row: Mapping[str, str], suffix: str) -> Path:
    """Return where a derivative of a scan lies: sub-X/[ses-Y/]anat/{scan_id}_{suffix}."""
    folder = Path(derivatives, f"sub-{row['subject']}")
    if row["session"] != MISSING:
        folder /= f"ses-{row['session']}"
    return folder / "anat" / f"{row['scan_id']}_{suffix}"


def _describe(derivatives: Path) -> None:
    """Write what makes a folder a BIDS derivative; jobs of several chunks write the same."""
    description = {
        "Name": "neuropeft preprocessing",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neuropeft"}],
    }
    with atomic_path(derivatives / "dataset_description.json") as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


# -- one step over a chunk -------------------------------------------------------------------------


def _run(step: str, rows: Sequence[Row], work: Work, table: str | Path, columns: Sequence[str]) -> None:
    done = [_advance(step, row, work) for row in track(rows, len(rows), step)]
    write_tsv(table, done, columns)


def _advance(step: str, row: Row, work: Work) -> Row:
    """Return the row with what `work` adds, or marked as failed."""
    if row["status"] == "failed":
        return row
    try:
        return row | {name: _text(value) for name, value in work(row).items()}
    except ScanError as error:
        reason = str(error)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        if stop := fault(error, row["scan_id"]):
            raise stop from error
        traceback.print_exc()
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        reason = f"{type(error).__name__}: {first_line}"
    print(f"{step}: {row['scan_id']} failed: {reason}", file=sys.stderr, flush=True)
    return row | {"status": "failed", "step": step, "reason": reason}


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _n4_path(n4_dir: str | Path, row: Row) -> Path:
    return Path(n4_dir, f"{row['scan_id']}.nii")


def _brain(row: Row) -> np.ndarray:
    return np.asarray(read_own(row["brain_mask"]).dataobj) > 0
