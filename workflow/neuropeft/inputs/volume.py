"""3D images that are cut out and turned already: checked, put into a cube and z-scored, as they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np

from neuropeft.files import MISSING
from neuropeft.inputs.arrays import resize, zscore
from neuropeft.inputs.base import Folders, InputKind, Number, OwnGrid, Row, Step, outline
from neuropeft.inputs.io import (
    ScanError,
    check_there,
    read_image,
    read_own,
    read_scan,
    save_image,
    to_ras,
    voxel_hash,
    voxel_sizes,
)

SAME_PLACE_MM = 0.5  # that the corners of a label map may lie away from those of its scan


class Volume(InputKind):
    """Images of any part of a body, each z-scored by itself, in the middle of a cube."""

    numbers: ClassVar[Mapping[str, Number]] = {
        "voxel_mm": Number("edge of a voxel, mm", 0.05, 20.0),
        "filled": Number("share of the cube that the image fills", 0.02, 1.0, low_only=True),
        "brightest": Number("brightest voxel, SDs above the mean", 0.9, 50.0),
    }
    name = "volume"
    label_columns = ("dseg", "preproc")
    label_suffix = ".nii.gz"
    fit = "filled"
    fit_label = "fills"
    legend = (
        "Middle slices from above, from the front and from the side, of the first channel. Left is left; "
        "front and top are up. Lines are the borders of labels."
    )

    def array(self, row: Row, size: int) -> np.ndarray:
        """Return the image in its cube [channels, size, size, size]."""
        return _channels_first(read_own(row["preproc"]))

    def label_map(self, row: Row, size: int) -> np.ndarray | None:
        """Return the label of the nearest voxel of the scan's own grid, uint8 [size, size, size]."""
        from nibabel.processing import resample_from_to

        if row["dseg"] == MISSING:
            return None
        cube = (size,) * 3, read_own(row["preproc"]).affine
        return np.asarray(resample_from_to(read_own(row["dseg"]), cube, order=0).dataobj).astype(np.uint8)

    def to_own_grid(self, row: Row, maps: np.ndarray) -> OwnGrid:
        """Interpolate maps of the cube at the voxels of the scan's file."""
        from nibabel.processing import resample_from_to

        truth, grid = read_own(row["dseg"]), read_own(row["preproc"]).affine
        own = [resample_from_to(nib.Nifti1Image(one, grid), truth, order=1) for one in maps]
        labels = np.asarray(truth.dataobj).astype(np.uint8)
        edges = voxel_sizes(truth.affine).tolist()
        return OwnGrid(np.stack([np.asarray(one.dataobj) for one in own]), labels, edges)

    def write_label_map(self, row: Row, labels: np.ndarray, path: Path) -> None:
        """Write it as NIfTI."""
        save_image(path.with_name(path.name + self.label_suffix), labels, read_own(row["dseg"]).affine)

    def montage(self, rows: Mapping[str, Row]) -> Any:
        """Draw three slices through the middle of each image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 2.2 * len(rows)), facecolor="black")
        axes = figure.subplots(len(rows), 3, squeeze=False)
        for line, (caption, row) in zip(axes, rows.items(), strict=True):
            cube = _channels_first(read_own(row["preproc"]))[0]
            labels = self.label_map(row, len(cube))
            values = [] if labels is None else np.unique(labels[labels > 0]).tolist()
            low, top = np.quantile(cube, (0.005, 0.995))
            for axis, direction in zip(line, (2, 1, 0), strict=True):
                middle = np.take(cube, cube.shape[direction] // 2, axis=direction).T
                axis.imshow(middle, cmap="gray", vmin=low, vmax=top, origin="lower")
                if labels is not None:
                    outline(axis, np.take(labels, len(cube) // 2, axis=direction).T, values)
                axis.axis("off")
            line[0].set_title(caption, color="white", fontsize=9, loc="left")
        figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.22 / (2.2 * len(rows)), wspace=0.02, hspace=0.16)
        return figure


def into_cube(image: nib.Nifti1Image, size: int, settings: Mapping[str, Any]) -> nib.Nifti1Image:
    """Put an image into the middle of a cube; what it does not fill is 0, or the lowest value of a window.

    Without a `spacing`, an image with an axis longer than the cube is shrunk first, by one factor for all
    axes. With one, it is resampled to whole voxels of about that size and cut where the cube ends.

    Args:
        image: in RAS order, [x, y, z] or [x, y, z, channels].
        size: edge of the cube in voxels.
        settings: `spacing`, `zscore` and `window` as `config.inputs.Volume` has them, where they are given.

    Returns:
        float32 [size, size, size] or [size, size, size, channels], with the affine that says where its voxels
        lie.

    Raises:
        ScanError: a channel is constant once it is resampled.
    """
    shape = np.array(image.shape[:3])
    if (spacing := settings.get("spacing")) is None:
        ratio = np.full(3, min(1.0, size / shape.max()))
    else:
        ratio = voxel_sizes(image.affine) / spacing
    small = np.maximum(1, np.rint(shape * ratio)).astype(int)
    before = (size - small) // 2
    cut = tuple(slice(max(0, -start), max(0, -start) + size) for start in before)
    around = [
        (max(0, start), max(0, size - start - length)) for start, length in zip(before, small, strict=True)
    ]
    empty = -1.0 if settings.get("window") else 0.0
    cubes = [
        np.pad(_intensities(resize(channel, small), settings)[cut], around, constant_values=empty)
        for channel in _channels_first(image)
    ]
    ratio = shape / small
    to_image = np.diag([*ratio, 1.0])  # from voxels of the cube to those of the image
    to_image[:3, 3] = (0.5 - before) * ratio - 0.5
    data = cubes[0] if image.ndim == 3 else np.stack(cubes, -1)
    return nib.Nifti1Image(data, image.affine @ to_image)


def _channels_first(image: nib.Nifti1Image) -> np.ndarray:
    """Return the voxels of an image [x, y, z] or [x, y, z, channels] as [channels, x, y, z]."""
    data = np.asarray(image.dataobj)
    return data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)


def _intensities(volume: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Return a channel [x, y, z] on the scale that the settings want."""
    if window := settings.get("window"):
        low, high = window
        return ((np.clip(volume, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
    if settings.get("zscore") == "foreground":
        scored, there = np.zeros_like(volume, np.float32), volume != 0
        scored[there] = zscore(volume[there])
        return scored
    return zscore(volume)


def _work(row: Row, folders: Folders, settings: Mapping[str, Any]) -> dict[str, str | float]:
    image = read_scan(row["path"], int(settings.get("channels", 1)))
    size = int(settings["size"])
    dseg = _label_map(row, image, folders, settings)
    cube = into_cube(image, size, settings)
    data = np.asarray(cube.dataobj)
    path = folders.derivative(row, "desc-preproc_volume.nii.gz")
    save_image(path, data, cube.affine)
    voxels = voxel_sizes(cube.affine)
    inside = np.minimum(np.array(image.shape[:3]) * voxel_sizes(image.affine), size * voxels)
    return {
        "raw_sha1": voxel_hash(image),
        "preproc": str(path),
        "dseg": dseg,
        "voxel_mm": float(np.cbrt(voxels.prod())),
        "filled": float(np.prod(inside)) / float(np.prod(voxels * size)),
        "brightest": float(data.max()),
    }


def _label_map(row: Row, image: nib.Nifti1Image, folders: Folders, settings: Mapping[str, Any]) -> str:
    """Check the label map of a scan and keep it on the grid of its file; MISSING if it has none."""
    path = row["mask"]
    if path == MISSING:
        return MISSING
    check_there(path, row["mask_size"])
    own = read_image(path, reorder=False)
    data = np.asarray(own.dataobj)
    turned = to_ras(data, own.affine)
    shape, wanted = turned.shape, image.shape[:3]
    if shape != wanted:
        raise ScanError(f"the label map {path} has {_by(shape)} voxels, its scan {_by(wanted)}: give its own")
    corners = np.array([[0, 0, 0], wanted])
    one, other = (nib.affines.apply_affine(some.affine, corners) for some in (turned, image))
    if (apart := float(np.abs(one - other).max())) > SAME_PLACE_MM:
        raise ScanError(f"the label map {path} lies {apart:.3g} mm away from its scan: give its own")
    allowed = [0, *settings["labels"]]
    if unknown := sorted(set(np.unique(data).tolist()) - set(allowed)):
        raise ScanError(
            f"the label map {path} holds {', '.join(f'{value:g}' for value in unknown[:5])}, which the "
            "`labels` of its cohort's input do not list: fix the map, or list it there"
        )
    kept = folders.derivative(row, "desc-own_dseg.nii.gz")
    save_image(kept, data.astype(np.uint8), own.affine)
    return str(kept)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


STEP = Step("prepare_volumes", _work, ("preproc", "dseg", *Volume.numbers))
KIND = Volume()
