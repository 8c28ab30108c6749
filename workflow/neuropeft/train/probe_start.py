"""A head that starts as the best linear probe of the frozen features (LP-FT, Kumar et al. 2022).

A head that starts at random pulls the backbone about before it knows what to ask of it, and in the few steps
that small data allow it hardly gets as far as a probe does at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from neuropeft.backbones.heads import Head
from neuropeft.tasks.base import Array, Objective, TaskKind
from neuropeft.tasks.linear import fit_linear


@torch.no_grad()
def start_from_probe(
    head: Head, kind: TaskKind, tokens: Tensor, targets: Array, subjects: Sequence[str], goal: Objective
) -> None:
    """Make the linear layer of `head` the ridge or logistic regression of the training scans' features.

    `tokens` [n, N, width] are of training scans as they are, `targets` [n, ...] and `subjects` [n].
    """
    features = head.features(tokens.to(head.linear.weight.device).float()).double().cpu().numpy()
    start = 0
    for model in fit_linear(kind, features, targets, np.asarray(subjects)):
        if isinstance(model, float):  # nothing to tell apart: the output starts as it is
            start += 1
            continue
        scaler, linear = model[0], model[-1]
        weight = np.atleast_2d(linear.coef_) / scaler.scale_  # [outputs of this model, features]
        bias = np.atleast_1d(linear.intercept_) - weight @ scaler.mean_
        own = slice(start, start + len(bias))
        offset = np.asarray(goal.offset[own])
        head.linear.weight[own].copy_(torch.from_numpy(weight / goal.scale))
        head.linear.bias[own].copy_(torch.from_numpy((bias - offset) / goal.scale))
        start = own.stop
