"""Our 9-parameter registration against DIPY's on the same bias-corrected brains: correlation and CPU time.

python benchmarks/registration.py BIDS_ROOT [--skull-strip stripped] [--every 8]
"""

import argparse
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
from dipy.align.imaffine import AffineRegistration, MutualInformationMetric, transform_centers_of_mass
from dipy.align.transforms import RigidScalingTransform3D, RigidTransform3D, TranslationTransform3D

from neuropeft.inputs.t1w.measures import template_numbers
from neuropeft.inputs.t1w.n4 import correct_bias
from neuropeft.inputs.t1w.register import register
from neuropeft.inputs.t1w.resample import to_template
from neuropeft.inputs.t1w.scan import load_scan
from neuropeft.inputs.t1w.skullstrip import METHODS, brain_mask
from neuropeft.inputs.t1w.template import mni152_brain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--skull-strip", choices=METHODS, default="deepbet")
    parser.add_argument("--every", type=int, default=1, help="take every n-th scan")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("scan\tcorrelation\tcorrelation_dipy\tCPU_s\tCPU_s_dipy")
    results = []
    for path in sorted(options.root.glob("sub-*/**/*_T1w.nii*"))[:: options.every]:
        image = correct_bias(load_scan(path))
        mask = brain_mask(image, options.skull_strip)
        start = time.process_time()
        ours = register(image, mask, mni152_brain()).matrix
        middle = time.process_time()
        dipys = dipy_matrix(image, mask)
        end = time.process_time()
        row = (correlation(image, mask, ours), correlation(image, mask, dipys), middle - start, end - middle)
        print(path.name, *(f"{value:.4f}" for value in row), sep="\t", flush=True)
        results.append(row)
    print("mean", *(f"{value:.4f}" for value in np.mean(results, axis=0)), sep="\t")


def dipy_matrix(image: nib.Nifti1Image, mask: np.ndarray) -> np.ndarray:
    """Register by DIPY's default metric and levels: translation, then rigid, then rigid with scales."""
    template = mni152_brain()
    fixed, moving = np.asarray(template.dataobj, np.float64), np.asarray(image.dataobj) * mask
    spaces = {"static_grid2world": template.affine, "moving_grid2world": image.affine}
    affine = transform_centers_of_mass(fixed, template.affine, moving, image.affine).affine
    optimiser = AffineRegistration(
        metric=MutualInformationMetric(nbins=32),
        level_iters=[10000, 1000, 100],
        sigmas=[3.0, 1.0, 0.0],
        factors=[4, 2, 1],
        verbosity=0,
    )
    for model in (TranslationTransform3D(), RigidTransform3D(), RigidScalingTransform3D()):
        found = optimiser.optimize(fixed, moving, model, None, **spaces, starting_affine=affine)
        affine = found.affine
    return affine


def correlation(image: nib.Nifti1Image, mask: np.ndarray, matrix: np.ndarray) -> float:
    # DIPY's matrix is slightly sheared, so it is no `NineDof`.
    transform: Any = SimpleNamespace(matrix=matrix)
    volume = to_template(image, mask, transform, mni152_brain())
    return template_numbers(volume)["template_correlation"]


if __name__ == "__main__":
    main()
