"""The numbers that say whether a scan was registered well."""

import numpy as np

from neuropeft.inputs.t1w.ninedof import NineDof, decompose
from neuropeft.inputs.t1w.template import mni152_brain, mni152_mask


def transform_numbers(transform: NineDof) -> dict[str, float]:
    """Return scales, angle and shear of a transform; the shear is measured on its matrix, not assumed."""
    shear = float(np.abs(decompose(transform.matrix)["shear"]).max())
    scales = {f"scale_{axis}": scale for axis, scale in zip("xyz", transform.scales, strict=True)}
    return {**scales, "rotation_deg": transform.rotation_deg, "shear": shear}


def template_numbers(volume: np.ndarray) -> dict[str, float]:
    """Compare a scan on the template grid, 0 outside its brain, with the template.

    Returns:
        `template_correlation`: Pearson's, over the voxels of the template's brain; `template_overlap`: Dice
        of the two brains.
    """
    inside, brain = mni152_mask(), volume != 0
    template = np.asarray(mni152_brain().dataobj)
    dice = 2 * np.count_nonzero(brain & inside) / (np.count_nonzero(brain) + np.count_nonzero(inside))
    correlation = np.corrcoef(volume[inside], template[inside])[0, 1]
    return {"template_correlation": float(correlation), "template_overlap": dice}
