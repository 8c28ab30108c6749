"""What a pretraining has learnt so far: is it more than the template, and does it tell people apart?

A low reconstruction loss can be reached without seeing any individual, since registered brains look alike.
Three numbers beside the loss say so: the loss of predicting each place's mean patch, how many directions the
features of different scans spread over, and how well a linear model on the frozen features predicts something
that is known.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuropeft.grouping import grouped

LARGEST = 256  # scans that are looked at
FEWEST = 20  # scans with a known target that a probe takes
FOLDS = 5
PENALTIES = np.logspace(-1, 5, 7)

Targets = Mapping[str, Sequence[float]]


def participation_ratio(features: Tensor) -> float:
    """Return over how many directions the features [n, d] of scans spread.

    It is (sum of variances)^2 / sum of their squares, of principal components: from 1, where one direction
    holds all variance, to min(n - 1, d).
    """
    centred = (features - features.mean(dim=0)).double()
    variances = torch.linalg.svdvals(centred).square()
    return float(variances.sum().square() / variances.square().sum().clamp_min(1e-30))


def probe(features: NDArray[np.float64], targets: Targets) -> dict[str, float]:
    """Return how well a ridge on frozen features predicts each target, on scans that it was not fitted on.

    Args:
        features: [n, d], one row per subject.
        targets: {name: n values}; NaN where unknown. Those that fewer than `FEWEST` scans know are left out.

    Returns:
        {`probe_<name>`: correlation of prediction and target over the folds of a cross-validation}.
    """
    values = {name: np.asarray(numbers, float) for name, numbers in targets.items()}
    values = {
        name: y
        for name, y in values.items()
        if np.isfinite(y).sum() >= FEWEST and np.ptp(y[np.isfinite(y)]) > 0
    }
    if not values:
        return {}
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES, alpha_per_target=True))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    found = {}
    # One fit serves all targets that the same scans know, which is most of what a fit costs.
    for known, names in grouped(values, lambda name: tuple(np.isfinite(values[name]).tolist())).items():
        rows = np.array(known)
        y = np.stack([values[name][rows] for name in names], axis=1)  # [scans, targets]
        predicted = cross_val_predict(model, features[rows], y, cv=folds).reshape(y.shape)
        for name, guess, truth in zip(names, predicted.T, y.T, strict=True):
            found[f"probe_{name}"] = 0.0 if np.ptp(guess) == 0 else float(np.corrcoef(guess, truth)[0, 1])
    return {f"probe_{name}": found[f"probe_{name}"] for name in values}
