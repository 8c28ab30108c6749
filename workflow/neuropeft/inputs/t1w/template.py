"""The MNI152 brain that every scan is registered to: 91x109x91 voxels of 2 mm.

The intensities are those of the ICBM152 2009a symmetric nonlinear template (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033), skull-stripped, which ships inside nilearn at 1 mm. Nothing is
downloaded.
"""

from functools import cache
from importlib.resources import files

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from neuropeft.errors import UserError

SHAPE = (91, 109, 91)
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
# nilearn is not imported for its one file: that would load scikit-learn and pandas into every job.
FILE_IN_NILEARN = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
BLUR_MM = 2 / np.sqrt(8 * np.log(2))  # a full width of one 2 mm voxel, against aliasing


@cache
def mni152_brain() -> nib.Nifti1Image:
    """Return the template brain: float32 [91, 109, 91] in [0, 1], exactly 0 outside the brain, RAS.

    Raises:
        UserError: the installed nilearn does not hold the template.
    """
    path = files("nilearn") / FILE_IN_NILEARN
    if not path.is_file():
        raise UserError(f"nilearn has no file {FILE_IN_NILEARN}; install a version below 0.14")
    fine = nib.Nifti1Image.from_filename(str(path))
    intensities = np.asarray(fine.dataobj, np.float32)
    brain = gaussian_filter((intensities > 0).astype(np.float32), BLUR_MM)
    blurred = gaussian_filter(intensities, BLUR_MM)
    # The 1 mm grid holds every centre of the 2 mm one, so taking voxels is exact.
    start = np.rint(np.linalg.solve(fine.affine, AFFINE[:, 3])[:3]).astype(int)
    take = tuple(slice(first, first + 2 * size, 2) for first, size in zip(start, SHAPE, strict=True))
    inside = brain[take] >= 0.5
    data = np.where(inside, blurred[take] / np.maximum(brain[take], 0.5), 0)
    return nib.Nifti1Image((data / data.max()).astype(np.float32), AFFINE)


@cache
def mni152_mask() -> np.ndarray:
    """Return where the template has brain: bool [91, 109, 91]."""
    return np.asarray(mni152_brain().dataobj) > 0
