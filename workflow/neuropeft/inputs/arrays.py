"""What kinds of input do with arrays: resize them, and give them mean 0 and deviation 1."""

from collections.abc import Sequence

import numpy as np

from neuropeft.inputs.io import ScanError


def resize(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize an array to a shape of as many axes.

    Every axis is interpolated linearly between voxel centres, with a kernel as wide as the output voxel
    where the axis shrinks, against aliasing. Weights add to 1.
    """
    for axis, new in enumerate(shape):
        weights = _resize_weights(array.shape[axis], new)
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)
    return array


def _resize_weights(old: int, new: int) -> np.ndarray:
    """Return the [new, old] matrix that resizes an axis."""
    ratio = old / new
    centres = (np.arange(new) + 0.5) * ratio - 0.5
    distances = np.abs(centres[:, None] - np.arange(old)) / max(ratio, 1.0)
    weights = np.maximum(0, 1 - distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def zscore(volume: np.ndarray) -> np.ndarray:
    """Return a volume with mean 0 and standard deviation 1 over all its voxels, background included.

    Raises:
        ScanError: the volume is constant.
    """
    mean, deviation = volume.mean(dtype=np.float64), volume.std(dtype=np.float64)
    if not deviation > 0:
        raise ScanError("the preprocessed scan is constant")
    return ((volume - mean) / deviation).astype(np.float32)
