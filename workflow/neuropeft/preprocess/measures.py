"""The numbers that say whether a scan was preprocessed well, and those by which it is known again."""

from functools import cache

import numpy as np

from neuropeft.preprocess.ninedof import NineDof, decompose
from neuropeft.preprocess.resample import to_model_grid
from neuropeft.preprocess.template import mni152_brain, mni152_mask
from neuropeft.store import pool

# Name, how it is written, and the range beyond which it is flagged in any cohort.
NUMBERS: dict[str, tuple[str, tuple[float, float]]] = {
    "mask_ml": ("brain mask, ml", (700.0, 2200.0)),
    "template_correlation": ("correlation with the template inside its brain", (0.3, 1.0)),
    "template_overlap": ("overlap (Dice) with the template's brain", (0.85, 1.0)),
    "scale_x": ("scale left-right", (0.7, 1.3)),
    "scale_y": ("scale posterior-anterior", (0.7, 1.3)),
    "scale_z": ("scale inferior-superior", (0.7, 1.3)),
    "rotation_deg": ("rotation, degrees", (0.0, 45.0)),
    "shear": ("shear", (0.0, 1e-6)),
}


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


def signature(cube: np.ndarray) -> np.ndarray:
    """Return what tells a stored scan from those of other people.

    All brains look like the template: pooled volumes of two people correlate by up to 0.998. Without it they
    do not, see `leaks.SAME`.

    Args:
        cube: [S, S, S] as it is stored.

    Returns:
        float32 [POOLED_SIZE³] of mean 0 and norm 1, whose products are correlations.
    """
    pooled, template = _standard(pool(cube)), _template_on(cube.shape[0])
    return _standard(pooled - (pooled @ template) * template).astype(np.float32)


@cache
def _template_on(size: int) -> np.ndarray:
    return _standard(pool(to_model_grid(np.asarray(mni152_brain().dataobj), size)))


def _standard(values: np.ndarray) -> np.ndarray:
    values = values - values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-12)
