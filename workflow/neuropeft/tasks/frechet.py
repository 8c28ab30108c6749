"""The Frechet distance of two sets of features, and how much each image adds to it."""

import numpy as np
from numpy.typing import NDArray

from neuropeft.tasks.metrics import Array

TINY = 1e-10  # of the largest singular value: what is below is rounding


def frechet(first: Array, second: Array) -> tuple[float, Array]:
    """Return the squared Frechet distance of two sets of images, and the influence of each pair of images.

    With means m and covariances C of the features it is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel
    et al. 2017, FID). The trace of the root is the sum of the singular values of F1 F2^T, where F^T F = C.

    A bootstrap that draws images twice leaves fewer different ones, and the distance of fewer images is
    larger. Intervals rest on influences instead, the derivative by an image's weight: its resamples lie
    around the distance itself (the infinitesimal jackknife, Efron 1982).

    Args:
        first: features [n, D], of drawn images.
        second: features [n, D], of the real images of the same texts.

    Returns:
        The distance, which chance makes larger the fewer images there are, and influences [n] that add up to
        0: with weights w [n] that add up to n it is about distance + (w @ influences) / n.
    """
    apart = first.mean(0) - second.mean(0)
    sets = [one - one.mean(0) for one in (first.astype(np.float64), second.astype(np.float64))]
    roots = [_root(one) for one in sets]
    left, values, right = np.linalg.svd(roots[0] @ roots[1].T, full_matrices=False)
    distance = apart @ apart + sum((root**2).sum() for root in roots) - 2 * values.sum()
    influence, unbiased = np.zeros(len(first)), len(first) / (len(first) - 1)
    kept = values > TINY * max(values.max(initial=0.0), np.finfo(float).tiny)
    # (one set, sign of its mean, the other's root turned to the singular vectors)
    for one, sign, turned in ((sets[0], 1, right @ roots[1]), (sets[1], -1, left.T @ roots[0])):
        mapped = ((one @ turned[kept].T) ** 2 / values[kept]).sum(1)
        of_image = 2 * sign * one @ apart + unbiased * ((one**2).sum(1) - mapped)
        influence += of_image - of_image.mean()
    return max(float(distance), 0.0), influence


def _root(centred: Array) -> NDArray[np.float64]:
    """Return F [min(n, D), D] with F^T F = covariance, of centred features [n, D]."""
    scaled = centred / np.sqrt(len(centred) - 1)
    return scaled if len(scaled) <= scaled.shape[1] else np.linalg.qr(scaled).R
