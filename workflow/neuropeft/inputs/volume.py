"""3D images that are cut out and turned already: checked, put into a cube and z-scored, as they are."""

from collections.abc import Mapping
from typing import Any, ClassVar

import nibabel as nib
import numpy as np

from neuropeft.inputs.arrays import resize, zscore
from neuropeft.inputs.base import Folders, InputKind, Number, Row, Step
from neuropeft.inputs.io import read_own, read_scan, save_image, voxel_hash, voxel_sizes


class Volume(InputKind):
    """Images of any part of a body, each z-scored by itself, in the middle of a cube."""

    numbers: ClassVar[Mapping[str, Number]] = {
        "voxel_mm": Number("edge of a voxel, mm", 0.05, 20.0),
        "filled": Number("share of the cube that the image fills", 0.02, 1.0, low_only=True),
        "brightest": Number("brightest voxel, SDs above the mean", 1.0, 50.0),
    }
    fit = "filled"
    fit_label = "fills"
    legend = "Middle slices from above, from the front and from the side. Left is left; front and top are up."

    def array(self, row: Row, size: int) -> np.ndarray:
        """Return the image in its cube [1, size, size, size]."""
        return np.asarray(read_own(row["preproc"]).dataobj)[None]

    def montage(self, rows: Mapping[str, Row]) -> Any:
        """Draw three slices through the middle of each image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 2.2 * len(rows)), facecolor="black")
        axes = figure.subplots(len(rows), 3, squeeze=False)
        for line, (caption, row) in zip(axes, rows.items(), strict=True):
            cube = np.asarray(read_own(row["preproc"]).dataobj)
            low, top = np.quantile(cube, (0.005, 0.995))
            for axis, direction in zip(line, (2, 1, 0), strict=True):
                middle = np.take(cube, cube.shape[direction] // 2, axis=direction).T
                axis.imshow(middle, cmap="gray", vmin=low, vmax=top, origin="lower")
                axis.axis("off")
            line[0].set_title(caption, color="white", fontsize=9, loc="left")
        figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.22 / (2.2 * len(rows)), wspace=0.02, hspace=0.16)
        return figure


def into_cube(image: nib.Nifti1Image, size: int) -> nib.Nifti1Image:
    """Put an image into the middle of a cube, z-scored by its own voxels; what it does not fill is 0.

    An image with an axis longer than the cube is shrunk first, by one factor for all axes.

    Args:
        image: in RAS order.
        size: edge of the cube in voxels.

    Returns:
        float32 [size, size, size], with the affine that says where its voxels lie.

    Raises:
        ScanError: the image is constant once it is shrunk.
    """
    shape = np.array(image.shape)
    small = np.maximum(1, np.rint(shape * min(1.0, size / shape.max()))).astype(int)
    data = zscore(resize(np.asarray(image.dataobj), small))
    before = (size - small) // 2
    data = np.pad(data, [(start, size - start - length) for start, length in zip(before, small, strict=True)])
    ratio = shape / small
    to_image = np.diag([*ratio, 1.0])  # from voxels of the cube to those of the image
    to_image[:3, 3] = (0.5 - before) * ratio - 0.5
    return nib.Nifti1Image(data, image.affine @ to_image)


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    image = read_scan(row["path"])
    size = int(settings["size"])
    cube = into_cube(image, size)
    data = np.asarray(cube.dataobj)
    path = folders.derivative(row, "desc-preproc_volume.nii.gz")
    save_image(path, data, cube.affine)
    return {
        "raw_sha1": voxel_hash(image),
        "preproc": str(path),
        "voxel_mm": float(np.cbrt(voxel_sizes(cube.affine).prod())),
        "filled": float(np.prod(np.array(image.shape) * voxel_sizes(image.affine)))
        / float(np.prod(voxel_sizes(cube.affine) * size)),
        "brightest": float(data.max()),
    }


STEP = Step("prepare_volumes", _work, ("preproc", *Volume.numbers))
KIND = Volume()
