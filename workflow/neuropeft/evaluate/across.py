"""Tests across tasks, cohorts and subsets: do methods that start from the same weights differ at all?

Demsar 2006: Friedman's test over the blocks of a ranking, then Wilcoxon's signed-rank tests with Holm's
correction. Benavoli et al. 2017: the Bayesian signed-rank test, with a region of practical equivalence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import friedmanchisquare, wilcoxon

from neuropeft.config import Config
from neuropeft.evaluate.blocks import Ranking, on_one_scale, ranks
from neuropeft.evaluate.compare import ALPHA, BETTER, WORSE, holm
from neuropeft.evaluate.scores import Score
from neuropeft.tasks.base import Array

SAMPLES = 5000  # of a posterior
CERTAIN = 0.95  # posterior probability of a verdict
EQUIVALENT, UNDECIDED, TOO_FEW = "practically equal", "undecided", "too few blocks"


@dataclass(frozen=True)
class Across:
    """How a method stands beside the reference over all blocks of its ranking."""

    method: str  # its name
    mean_rank: float  # mean of its ranks; 1 is the best
    # median over blocks of its difference from the reference on one scale, above 0 is better; NaN for the
    # reference, and where there is none
    difference: float = math.nan
    # of Wilcoxon's signed-rank test against the reference, corrected for the methods of the list
    p_holm: float = math.nan
    # posterior probability that it is worse than the reference by more than is practically nothing
    worse: float = math.nan
    equal: float = math.nan  # that there is practically no difference
    better: float = math.nan  # that it is better by more
    verdict: str = ""  # what can be said; empty for the reference, and where there is none


def too_few(blocks: int, tests: int) -> bool:
    """Whether not even a difference of one sign in all blocks could be shown by so many Wilcoxon tests."""
    return tests * 2.0 ** (1 - blocks) >= ALPHA


def friedman(ranking: Ranking) -> float:
    """Return the p-value that all methods of a ranking are alike (Friedman 1937); NaN for a single block."""
    places = np.array([ranks(row) for row in ranking.scores])
    if len(places) < 2 or (places == places[0, 0]).all():
        return math.nan
    return float(friedmanchisquare(*places.T).pvalue)


def across(config: Config, ranking: Ranking, scores: Sequence[Score]) -> list[Across]:
    """Return how each method of a ranking stands, the best mean rank first.

    `scores` are all: errors are judged by those of predicting the mean.
    """
    place = reference_place(ranking)
    mean_rank = np.mean([ranks(row) for row in ranking.scores], axis=0)
    order = np.argsort(mean_rank, kind="stable")
    if place is None:
        return [Across(ranking.methods[one], float(mean_rank[one])) for one in order]
    values = on_one_scale(config, ranking, scores)
    values = values[np.isfinite(values).all(axis=1)]
    others = [one for one in range(len(ranking.methods)) if one != place]
    corrected = dict(
        zip(others, holm([signed_rank(values[:, one] - values[:, place]) for one in others]), strict=True)
    )
    found = []
    for one in order:
        if one == place or not len(values):
            found.append(Across(ranking.methods[one], float(mean_rank[one])))
            continue
        posterior = _posterior(values[:, place], values[:, one], config.statistics.equivalence)
        middle = float(np.median(values[:, one] - values[:, place]))
        verdict = _verdict(corrected[one], middle, posterior[1])
        if too_few(len(values), len(others)):
            verdict = TOO_FEW
        numbers = (float(mean_rank[one]), middle, float(corrected[one]), *posterior)
        found.append(Across(ranking.methods[one], *numbers, verdict))
    return found


def reference_place(ranking: Ranking) -> int | None:
    """Return which method of a ranking the others are compared with, None if there is none."""
    row = ranking.scores[0]
    return next((place for place, score in enumerate(row) if score.contender.is_reference), None)


def signed_rank(differences: Array) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test of differences [blocks]; 1 without any."""
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def pairwise(values: Array) -> Array:
    """Return the p-values of all pairs of methods, [methods, methods], corrected by Holm for their number.

    Args:
        values: scores on one scale, [blocks, methods].
    """
    pairs = list(combinations(range(values.shape[1]), 2))
    corrected = holm([signed_rank(values[:, one] - values[:, other]) for one, other in pairs])
    p = np.ones((values.shape[1],) * 2)
    for (one, other), value in zip(pairs, corrected, strict=True):
        p[one, other] = p[other, one] = value
    return p


def _posterior(reference: Array, values: Array, equivalence: float) -> tuple[float, float, float]:
    """Return the probabilities that a method is worse than, equal to and better than the reference."""
    from baycomp import SignedRankTest

    test = SignedRankTest(reference, values, equivalence, nsamples=SAMPLES, random_state=0)
    worse, equal, better = map(float, test.probs())
    return worse, equal, better


def _verdict(p: float, difference: float, equal: float) -> str:
    if equal >= CERTAIN:
        return EQUIVALENT
    if p < ALPHA:
        return BETTER if difference > 0 else WORSE
    return UNDECIDED
