"""One scan through the four steps outside the workflow, by the same functions."""

from pathlib import Path

import numpy as np

from neuropeft.errors import UserError
from neuropeft.files import atomic_path
from neuropeft.inputs.io import SUFFIXES, save_image
from neuropeft.inputs.t1w.measures import template_numbers, transform_numbers
from neuropeft.inputs.t1w.montage import draw_montage
from neuropeft.inputs.t1w.n4 import correct_bias
from neuropeft.inputs.t1w.ninedof import save_itk
from neuropeft.inputs.t1w.register import register
from neuropeft.inputs.t1w.resample import to_model_grid, to_template
from neuropeft.inputs.t1w.scan import load_scan
from neuropeft.inputs.t1w.skullstrip import brain_mask, mask_ml
from neuropeft.inputs.t1w.template import AFFINE, mni152_brain


def preprocess_scan(
    scan: str | Path, out_dir: str | Path, skull_strip: str = "deepbet", mask: str | Path | None = None
) -> dict[str, float]:
    """Preprocess a scan and write its mask, transform, preprocessed scan, model volume and QC picture.

    Files in `out_dir` are named by the scan's file; `mask` is on the scan's own grid, for a `skull_strip` by
    `given`.

    Returns:
        The QC numbers of `kind.T1w`.

    Raises:
        UserError: the scan cannot be processed; the message says why.
    """
    if (skull_strip == "given") != (mask is not None):
        raise UserError("`--skull-strip given` and `--mask` go together: give both or neither")
    stem = _stem(Path(scan))
    out = Path(out_dir)
    image = correct_bias(load_scan(scan))
    brain = brain_mask(image, skull_strip, mask)
    save_image(out / f"{stem}_desc-brain_mask.nii.gz", brain, image.affine)
    transform = register(image, brain, mni152_brain())
    save_itk(transform, out / f"{stem}_from-T1w_to-MNI152_mode-image_xfm.txt")
    volume = to_template(image, brain, transform, mni152_brain())
    save_image(out / f"{stem}_space-MNI152_desc-preproc_T1w.nii.gz", volume, AFFINE, space="mni")
    with atomic_path(out / f"{stem}_space-MNI152_desc-model_T1w.npy") as partial:
        np.save(partial, to_model_grid(volume).astype(np.float16))
    with atomic_path(out / f"{stem}_desc-qc_T1w.png") as partial:
        draw_montage({stem: volume}).savefig(partial, dpi=110)
    return {
        "mask_ml": mask_ml(brain, image.affine),
        **template_numbers(volume),
        **transform_numbers(transform),
    }


def _stem(scan: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if scan.name.endswith(suffix):
            return scan.name.removesuffix(suffix).removesuffix("_T1w")
    return scan.name
