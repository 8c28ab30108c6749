"""The nine-parameter transform: rotation, translation and one scale per axis, without shear.

It maps points of the template to points of the scan, as resampling needs it and as ITK stores it:

    x_scan = T · R · S · x_template        S = diag(scales), R = Rz · Ry · Rx

Scales act first, along the template's left-right, posterior-anterior and inferior-superior axes, so they are
those of the head: 0.9 along x is a head 10 % narrower than the template. The columns of R · S are orthogonal,
which is what "no shear" means. (The inverse scales last; its rows are orthogonal.) All in mm and RAS; ITK
files are in LPS.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from neuropeft.errors import UserError, fault
from neuropeft.files import atomic_path

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS to LPS and back
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class NineDof:
    """A transform from the template to the scan.

    `rotation` is in radians around x, y and z (applied in this order), `translation` in mm (the scan point of
    the template's origin), `scales` are scan mm per template mm along the template's x, y and z.
    """

    rotation: Triple
    translation: Triple
    scales: Triple

    @cached_property
    def matrix(self) -> np.ndarray:
        """Return T · R · S, [4, 4]: template RAS mm to scan RAS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_matrix(self.rotation) * np.asarray(self.scales)
        matrix[:3, 3] = self.translation
        return matrix

    @property
    def rotation_deg(self) -> float:
        """Return the angle of the whole rotation in degrees."""
        cosine = (np.trace(rotation_matrix(self.rotation)) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def rotation_matrix(angles: Triple | np.ndarray) -> np.ndarray:
    """Return Rz · Ry · Rx, [3, 3], of angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    return np.array(
        [
            [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
            [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
            [-sy, sx * cy, cx * cy],
        ]
    )


def decompose(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Split an affine matrix into translation, rotation, scales and shear.

    By Gram-Schmidt on the columns, matrix[:3, :3] = R · S · K with K upper triangular and 1 on its diagonal
    (Thomas 1991, Decomposing a matrix into simple transformations, Graphics Gems II). A transform of
    `NineDof` has K = 1.

    Args:
        matrix: [4, 4], template to scan.

    Returns:
        `translation` [3], `rotation` [3, 3], `scales` [3] and `shear` [3] (K's xy, xz and yz entries).
    """
    linear = matrix[:3, :3]
    rotation, upper = np.linalg.qr(linear)
    signs = np.sign(np.diag(upper))
    rotation, upper = rotation * signs, signs[:, None] * upper
    scales = np.diag(upper).copy()
    if np.linalg.det(rotation) < 0:  # a reflection is not a rotation: it shows as a negative scale
        rotation[:, 0], scales[0], upper[0] = -rotation[:, 0], -scales[0], -upper[0]
    unit = upper / scales[:, None]
    return {
        "translation": matrix[:3, 3].copy(),
        "rotation": rotation,
        "scales": scales,
        "shear": unit[[0, 0, 1], [1, 2, 2]],
    }


def save_itk(transform: NineDof, path: str | Path) -> None:
    """Write the transform as an ITK text file that ANTs, SimpleITK and 3D Slicer read.

    ITK's transforms map fixed (template) to moving (scan) points in LPS, as ours does in RAS.
    """
    lps = LPS @ transform.matrix @ LPS
    numbers = [*lps[:3, :3].ravel(), *lps[:3, 3]]
    lines = [
        "#Insight Transform File V1.0",
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        "Parameters: " + " ".join(repr(float(number)) for number in numbers),
        "FixedParameters: 0 0 0",
    ]
    with atomic_path(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="ascii")


def load_itk(path: str | Path) -> NineDof:
    """Read a transform that `save_itk` wrote.

    Raises:
        UserError: the file is not such a transform, or has shear; that is no fault of its scan.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        fields = dict(line.split(": ", 1) for line in lines if not line.startswith("#") and line)
        numbers = np.array([float(word) for word in fields["Parameters"].split()])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = numbers[:9].reshape(3, 3), numbers[9:]
    except (OSError, KeyError, ValueError) as error:
        raise fault(error, str(path)) or UserError(
            f"{path} is not an ITK affine transform: {error}; delete it to make it again"
        ) from error
    parts = decompose(LPS @ matrix @ LPS)
    if np.abs(parts["shear"]).max() > 1e-6 or parts["scales"].min() <= 0:
        raise UserError(f"{path} is not a transform of rotation, translation and scales; delete it")
    return NineDof(triple(_angles(parts["rotation"])), triple(parts["translation"]), triple(parts["scales"]))


def triple(values: Iterable[float]) -> Triple:
    """Return three numbers as plain floats."""
    x, y, z = map(float, values)
    return x, y, z


def _angles(rotation: np.ndarray) -> Triple:
    """Return the angles that `rotation_matrix` makes this rotation of."""
    return (
        np.arctan2(rotation[2, 1], rotation[2, 2]),
        -np.arcsin(np.clip(rotation[2, 0], -1, 1)),
        np.arctan2(rotation[1, 0], rotation[0, 0]),
    )
