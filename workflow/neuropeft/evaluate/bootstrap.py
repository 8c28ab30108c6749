"""Resampling of subjects and seeds: draws of metrics, and the intervals that they give."""

from collections.abc import Iterator, Sequence

import numpy as np

from neuropeft.evaluate.fast_draws import FAST
from neuropeft.tasks.base import Array, TaskKind

DRAWS = 2000
RESAMPLED_AT_ONCE = 2_000_000  # weights: some ten arrays of so many numbers are in memory at a time


def resamples(n: int, draws: int = DRAWS, seed: int = 0, at_once: int = RESAMPLED_AT_ONCE) -> Iterator[Array]:
    """Yield bootstrap weights [some draws, n]: how often each of `n` subjects is drawn when drawing n.

    The same n and seed give the same draws, whatever the size of the pieces: methods tested on the same
    subjects are compared in pairs.

    Args:
        n: number of subjects.
        draws: number of resamples, of all pieces together.
        seed: seed of the resampling.
        at_once: most weights of a piece, which has one draw at least.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, at_once // n)
    for first in range(0, draws, rows):
        size = min(rows, draws - first)
        flat = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(flat.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def percentile_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws; draws without a value (one class drawn) are left out."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_draws(
    kind: TaskKind,
    runs: Sequence[tuple[Array, Array, Array]],
    draws: int = DRAWS,
    seed: int = 0,
    seeds: int = 1,
) -> dict[str, Array]:
    """Draws of the mean of each metric over runs, under resampling of subjects and of seeds.

    Args:
        kind: what was predicted.
        runs: (y, score, rule) of each run, as `TaskKind.measure` takes them, subjects in the same order;
            those of a seed together.
        draws: number of resamples; each resample takes the same subjects for all runs.
        seed: seed of the resampling; methods of as many subjects and seeds meet the same draws of both.
        seeds: how many seeds there are, of as many runs each.

    Returns:
        Metric name to [draws]; give it to `percentile_interval`.
    """
    metrics = (*kind.metrics, *kind.parts)
    pieces: dict[str, list[Array]] = {metric.name: [] for metric in metrics}
    fast = set(metrics) <= FAST.keys() and all(np.isfinite(score).all() for _, score, _ in runs)
    for weights in resamples(len(runs[0][0]), draws, seed):
        measured = [] if fast else [kind.measure(*run, weights) for run in runs]
        for metric in metrics:
            slow = [values[metric.name] for values in measured]
            pieces[metric.name].append(FAST[metric](runs, weights) if fast else np.array(slow))
    found = {}
    for name, of_metric in pieces.items():
        of_runs = np.concatenate(of_metric, axis=1)  # [runs, draws]
        found[name] = over_seeds(of_runs.reshape(seeds, -1, draws).mean(axis=1), seed)
    return found


def over_seeds(of_seeds: Array, seed: int = 0) -> Array:
    """Return draws of the mean over seeds, from draws in which subjects alone were resampled.

    Seeds differ by themselves, and because the errors that they make on a subject differ. Resampled subjects
    show the second already; resampling seeds as well would count it three times (Owen 2007, "The pigeonhole
    bootstrap"). So the draws of seeds are shrunk to the share of the variance that is the seeds' own, which
    two estimates give: the variance between the seeds' means (own + errors), and that between seeds within
    a draw (own + twice errors). Drawing all but one of the seeds makes up for how few they are.

    Args:
        of_seeds: draws of each seed's value under the same subjects, [seeds, draws]; NaN where undefined.
        seed: seed of the resampling; methods of as many seeds meet the same draws.
    """
    count, draws = of_seeds.shape
    defined = of_seeds[:, np.isfinite(of_seeds).all(axis=0)]
    if count == 1 or not defined.size:
        return of_seeds.mean(axis=0)
    taken = np.random.default_rng((seed, 1)).multinomial(count - 1, [1 / count] * count, size=draws).T
    between, within_draws = defined.mean(axis=1).var(ddof=1), defined.var(axis=0, ddof=1).mean()
    own = max(0.0, 2 * between - within_draws) / within_draws if within_draws > 0 else 0.0
    weights = 1 / count + np.sqrt(own) * (taken / (count - 1) - 1 / count)  # none is negative
    return (of_seeds * weights).sum(axis=0)
