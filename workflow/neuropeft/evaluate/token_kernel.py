"""Tokens of several cohorts, as means over tokens and as products between scans; read in small pieces."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Tokens of a cohort [scans, N, width], memory-mapped, and which of its scans are wanted, in which order.
Wanted = tuple[NDArray[np.float16], Sequence[int]]

SCANS_AT_ONCE = 256
TOKENS_AT_ONCE = 8


def mean_tokens(cohorts: Sequence[Wanted]) -> Array:
    """Return the mean over the tokens of each wanted scan, [m, width]."""
    return np.concatenate(
        [
            np.asarray(tokens[list(places[start : start + SCANS_AT_ONCE])], dtype=np.float64).mean(1)
            for tokens, places in cohorts
            for start in range(0, len(places), SCANS_AT_ONCE)
        ]
    )


def token_kernel(cohorts: Sequence[Wanted], train: int) -> Array:
    """Return the products of all tokens of each wanted scan with those of the first `train` ones.

    Tokens count by their place: what is multiplied are vectors of N * width numbers, less their mean over
    the training scans, which is common to all scans and would drown in rounding what tells them apart.

    Returns:
        [m, train]
    """
    scans = sum(len(places) for _, places in cohorts)
    kernel = np.zeros((scans, train))
    for start in range(0, cohorts[0][0].shape[1], TOKENS_AT_ONCE):
        piece = np.concatenate(
            [
                np.asarray(tokens[list(places), start : start + TOKENS_AT_ONCE], dtype=np.float32)
                for tokens, places in cohorts
            ]
        ).reshape(scans, -1)
        piece -= piece[:train].mean(0)
        kernel += piece @ piece[:train].T
    return kernel
