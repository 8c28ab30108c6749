"""A head that starts as the best linear probe of the frozen features (LP-FT, Kumar et al. 2022).

A head that starts at random pulls the backbone about before it knows what to ask of it, and in the few steps
that small data allow it hardly gets as far as a probe does at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from neuropeft.backbones.heads import Head
from neuropeft.linear import tuned_linear_model
from neuropeft.train.losses import Objective


@torch.no_grad()
def start_from_probe(
    head: Head, kind: str, tokens: Tensor, targets: Sequence[float], subjects: Sequence[str], goal: Objective
) -> None:
    """Make the linear layer of `head` the ridge or logistic regression of the training scans' features.

    Args:
        head: A head whose statistics have been measured.
        kind: binary, multiclass or regression.
        tokens: Tokens of training scans [n, N, width], not augmented.
        targets: Their targets, [n].
        subjects: Their subjects, [n]; inner folds by subject choose the penalty.
        goal: What outputs mean: reported are outputs * scale + offset.
    """
    features = head.features(tokens.to(head.linear.weight.device).float()).double().cpu().numpy()
    model = tuned_linear_model(kind, features, np.asarray(targets, float), np.asarray(subjects))
    scaler, linear = model[0], model[-1]
    weight = np.atleast_2d(linear.coef_) / scaler.scale_  # [outputs, features]
    bias = np.atleast_1d(linear.intercept_) - weight @ scaler.mean_
    head.linear.weight.copy_(torch.from_numpy(weight / goal.scale))
    head.linear.bias.copy_(torch.from_numpy((bias - np.asarray(goal.offset)) / goal.scale))
