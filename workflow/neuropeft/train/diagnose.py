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
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = {}
    for name, values in targets.items():
        y = np.asarray(values, float)
        known = np.isfinite(y)
        if known.sum() < FEWEST or np.ptp(y[known]) == 0:
            continue
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
        folds = KFold(FOLDS, shuffle=True, random_state=0)
        predicted = cross_val_predict(model, features[known], y[known], cv=folds)
        constant = np.ptp(predicted) == 0
        found[f"probe_{name}"] = 0.0 if constant else float(np.corrcoef(predicted, y[known])[0, 1])
    return found
