"""Intervals and p-values against known answers: what they should hold in simulated studies, they hold."""

import numpy as np
import pytest
from scipy.stats import kstest

from neuropeft.evaluate.bootstrap import bootstrap_draws, over_seeds, percentile_interval, resamples
from neuropeft.evaluate.compare import p_value
from neuropeft.evaluate.delong import auc_interval, covariance, placements
from neuropeft.evaluate.fast_draws import FAST, auc_draws
from neuropeft.tasks import task_kind
from neuropeft.tasks.metrics import auc

BINARY, REGRESSION = task_kind("binary", 2), task_kind("regression", 0)
STUDIES = 1000


def classes(rng, n: int, strength: float, models: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the scores of models that agree in part, with ties."""
    y = (np.arange(n) % 5 < 2).astype(float)
    common = rng.normal(size=n)
    return y, np.round(strength * y + 0.7 * common + 0.7 * rng.normal(size=(models, n)), 1)


def test_the_covariance_of_aucs_is_that_of_all_pairs():
    y, scores = classes(np.random.default_rng(0), 40, 1.0, 3)
    apart = scores[:, y == 1][:, :, None] - scores[:, y == 0][:, None]
    right = (np.sign(apart) + 1) / 2  # [models, positives, negatives]
    expected = sum(np.cov(right.mean(axis)) / right.shape[other] for axis, other in ((2, 1), (1, 2)))
    assert covariance(y, scores) == pytest.approx(expected)
    assert placements(y, scores)[0].mean(1) == pytest.approx([float(auc(y, score)) for score in scores])


def test_the_interval_of_an_auc_holds_it_in_95_of_100_studies():
    rng = np.random.default_rng(1)
    truth = np.mean(
        [auc(*(one[0] if k else one for k, one in enumerate(classes(rng, 4000, 1.2, 1)))) for _ in range(20)]
    )
    intervals = [auc_interval(*classes(rng, 60, 1.2, 2)) for _ in range(STUDIES)]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.97


def test_the_interval_of_an_auc_has_a_width_at_0_and_1():
    y = np.r_[np.zeros(10), np.ones(10)]
    low, high = auc_interval(y, [y])
    assert (0.75 < low < 0.9, high) == (True, 1.0)
    assert auc_interval(y, [1 - y]) == pytest.approx((0, 1 - low))
    assert low < auc_interval(np.r_[y, y], [np.r_[y, y]])[0], "of more subjects"


@pytest.mark.parametrize(("kind", "n"), [(BINARY, 50), (REGRESSION, 50)], ids=["binary", "regression"])
def test_fast_draws_are_those_of_the_metrics(kind, n):
    rng = np.random.default_rng(2)
    y, scores = classes(rng, n, 1.0, 2)
    if kind is REGRESSION:
        y, scores = rng.normal(60, 10, n), scores + 60
    runs = [(y, score, np.full(n, np.median(score))) for score in scores]
    runs.append((y, np.full(n, 0.5), np.full(n, np.nan)))  # constant, without a rule
    weights = next(iter(resamples(n, 300)))
    weights[0] = np.where(y == y[0], 1.0, 0.0)  # of one class, or one subject
    for metric in kind.metrics:
        slow = np.array([metric.value(*run, weights) for run in runs])
        assert FAST[metric](runs, weights) == pytest.approx(slow, abs=1e-6, nan_ok=True), metric.name


@pytest.mark.parametrize(("own", "alike"), [(0.07, 4), (0.0, 16)], ids=["seeds differ", "errors only"])
def test_the_bootstrap_over_subjects_and_seeds_holds_the_mean_in_95_of_100_studies(own, alike):
    rng = np.random.default_rng(3)
    held = []
    for _ in range(STUDIES):
        easy, seeds = rng.gamma(alike, 1 / alike, 60), rng.normal(1, own, 5)
        errors = easy * seeds[:, None] * rng.gamma(1.5, 1 / 1.5, (5, 60))
        runs = [(np.zeros(60), error, np.full(60, np.nan)) for error in errors]
        low, high = percentile_interval(bootstrap_draws(REGRESSION, runs, 250, seeds=5)["mae"])
        held.append(low <= 1 <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_draws_over_seeds_stay_within_the_values_and_need_no_spread():
    apart = np.array([[0.0, 0.1, np.nan], [0.9, 1.0, np.nan], [1.0, 1.0, np.nan]])
    drawn = over_seeds(apart)
    assert 0 <= drawn[:2].min() <= drawn[:2].max() <= 1
    assert np.isnan(drawn[2])
    assert over_seeds(np.ones((3, 4))) == pytest.approx(1.0)


def test_shuffled_labels_give_uniform_p_values():
    rng = np.random.default_rng(4)
    weights = next(iter(resamples(60, 250)))
    once = np.ones((1, 60))
    found = []
    for _ in range(STUDIES):
        y, scores = classes(rng, 60, 0.0, 2)
        runs = [(y, score, score) for score in scores]
        (one, other), (drawn, others) = auc_draws(runs, once)[:, 0], auc_draws(runs, weights)
        found.append(p_value(one - other, drawn - others, 60))
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.03 <= np.mean(np.array(found) < 0.05) <= 0.07
