"""T1-weighted brain MRI as a kind of input: its arrays, and what checks look at."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np

from neuropeft.inputs.base import InputKind, Number, Row, standard
from neuropeft.inputs.io import read_own
from neuropeft.inputs.t1w.montage import draw_montage
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.inputs.t1w.template import SHAPE, mni152_brain
from neuropeft.store import pool


class T1w(InputKind):
    """Brains on the template grid, resized to a cube and z-scored."""

    numbers: ClassVar[Mapping[str, Number]] = {
        "mask_ml": Number("brain mask, ml", 700.0, 2200.0),
        "template_correlation": Number("correlation with the template inside its brain", 0.3, 1.0, True),
        "template_overlap": Number("overlap (Dice) with the template's brain", 0.85, 1.0, True),
        "scale_x": Number("scale left-right", 0.7, 1.3),
        "scale_y": Number("scale posterior-anterior", 0.7, 1.3),
        "scale_z": Number("scale inferior-superior", 0.7, 1.3),
        "rotation_deg": Number("rotation, degrees", 0.0, 45.0),
        "shear": Number("shear", 0.0, 1e-6, drawn=False),
    }
    fit = "template_correlation"
    fit_label = "correlation"
    legend = (
        "Brain on the template grid. Yellow: outline of the template's brain; blue: its border of grey and "
        "white matter. Left is left."
    )

    def array(self, row: Row, size: int) -> np.ndarray:
        """Return the z-scored brain [1, size, size, size]."""
        return to_model_grid(np.asarray(read_own(row["preproc"]).dataobj), size)[None]

    def signature(self, array: np.ndarray) -> np.ndarray:
        """Return the pooled brain without what it shares with the template.

        All brains look like the template: pooled volumes of two people correlate by up to 0.998. Without it
        they do not, see `config.inputs`.
        """
        pooled, template = standard(pool(array)), _template_on(array.shape[1])
        return standard(pooled - (pooled @ template) * template).astype(np.float32)

    def montage(self, rows: Mapping[str, Row]) -> Any:
        """Draw masked brains under the contours of the template."""
        volumes = {caption: np.asarray(read_own(row["preproc"]).dataobj) for caption, row in rows.items()}
        for caption, volume in volumes.items():
            assert volume.shape == SHAPE, f"{caption} is not on the template grid"
        return draw_montage(volumes)


@cache
def _template_on(size: int) -> np.ndarray:
    return standard(pool(to_model_grid(np.asarray(mni152_brain().dataobj), size)[None]))


KIND = T1w()
