"""What a new scan is compared with: the QC numbers of the training cohort, and the features of its scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuropeft.inputs.base import Number
from neuropeft.inputs.qc import OUTLIER, SMALLEST_COHORT, outlier_scores
from neuropeft.tasks.base import Array

QUANTILES = 101  # at most, of a number: no value belongs to a person
COMPONENTS = 16  # at most; each takes some scans to be known
SCANS_PER_COMPONENT = 4
SMALLEST_VALIDATION = SMALLEST_COHORT - 1  # scans: with the new one, enough to say what stands out
LIKENESS = Number("likeness of its features to those of training scans", -np.inf, np.inf, low_only=True)

Quantiles = list[float]


def quantiles(values: Sequence[float] | Array) -> Quantiles:
    """Return the quantiles of one or more values, from the smallest to the largest."""
    known = np.asarray(values, float)
    return np.quantile(known, np.linspace(0, 1, min(QUANTILES, len(known)))).tolist()


def away(number: Number, known: Quantiles, value: float) -> float:
    """Return how far a value lies from known ones, see `outlier_scores`; infinite if it is implausible."""
    return float(outlier_scores({"it": number}, {"it": [*known, value]})["it"][-1])


def flags(
    numbers: Mapping[str, Number], known: Mapping[str, Quantiles], row: Mapping[str, float]
) -> dict[str, bool]:
    """Return the numbers by which a scan stands out, and whether each is implausible in any cohort."""
    scores = {name: away(number, known[name], row[name]) for name, number in numbers.items()}
    return {name: bool(np.isinf(score)) for name, score in scores.items() if score > OUTLIER}


@dataclass(frozen=True)
class Features:
    """A normal distribution of the features of scans, by probabilistic PCA (Tipping & Bishop 1999)."""

    mean: Array  # [f]
    components: Array  # orthonormal directions, [k, f]
    variances: Array  # of the components, [k]
    noise: Array  # variance of every other direction

    def likeness(self, features: Array) -> Array:
        """Return the likeness of features [n, f] to those of training, [n]: 0 at best.

        It is minus the Mahalanobis distance over the square root of f.
        """
        centred = features - self.mean
        inside = centred @ self.components.T
        rest = np.maximum((centred**2).sum(axis=1) - (inside**2).sum(axis=1), 0)
        squared = (inside**2 / self.variances).sum(axis=1) + rest / self.noise
        return -np.sqrt(squared / features.shape[1])


def fit_features(features: Array) -> Features:
    """Return the distribution of the features [n, f] of training scans."""
    from sklearn.decomposition import PCA

    most = max(1, min(COMPONENTS, len(features) // SCANS_PER_COMPONENT, features.shape[1] - 1))
    pca = PCA(most, svd_solver="full").fit(features)
    noise = max(float(pca.noise_variance_), 1e-12)
    return Features(pca.mean_, pca.components_, np.maximum(pca.explained_variance_, noise), np.array(noise))
