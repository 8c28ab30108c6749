"""Metrics against scikit-learn and by hand, and their bootstrap intervals."""

import math
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as oracle

from neuropeft.evaluate.bootstrap import bootstrap_draws, percentile_interval, resamples
from neuropeft.tasks import task_kind
from neuropeft.tasks.metrics import (
    auc,
    average_precision,
    balanced_accuracy,
    brier,
    macro_auc,
    mean_absolute_error,
    pearson_r,
    youden_threshold,
)

BINARY, MULTICLASS, REGRESSION = (
    task_kind("binary", 2),
    task_kind("multiclass", 3),
    task_kind("regression", 0),
)


@pytest.fixture
def labelled():
    rng = np.random.default_rng(3)
    y = (rng.random(60) < 0.4).astype(float)
    return y, np.clip((0.3 * y + rng.random(60)) / 1.3, 0, 1).round(1)  # rounding makes ties


def test_without_a_threshold_there_is_no_balanced_accuracy(labelled):
    (weights,) = resamples(60, 7)
    found = BINARY.measure(*labelled, np.array(np.nan), weights)
    assert np.isnan(found["balanced_accuracy"]).all()
    assert found["balanced_accuracy"].shape == (7,)
    assert np.isfinite(found["auc"]).all()


AS_SCIKIT_LEARN = pytest.mark.parametrize(
    ("metric", "expected"), [(auc, oracle.roc_auc_score), (average_precision, oracle.average_precision_score)]
)


@AS_SCIKIT_LEARN
def test_it_equals_scikit_learn_with_ties(labelled, metric, expected):
    y, score = labelled
    assert metric(y, score) == pytest.approx(expected(y, score))


def test_average_precision_needs_a_positive():
    scores = np.array([0.1, 0.2])
    assert np.isnan(average_precision(np.zeros(2), scores))
    assert average_precision(np.ones(2), scores) == 1


def test_auc_by_hand():
    # pairs (positive, negative): 0.9 beats both, 0.4 ties with 0.4 and loses to 0.6: 2.5 of 4
    assert auc(np.array([1.0, 0, 1, 0]), np.array([0.9, 0.4, 0.4, 0.6])) == pytest.approx(2.5 / 4)
    assert auc(np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(0.5)


@AS_SCIKIT_LEARN
def test_weights_mean_repeated_subjects(labelled, metric, expected):
    y, score = labelled
    (weights,) = resamples(len(y), draws=5, seed=1)
    for weight, value in zip(weights, metric(y, score, weights), strict=True):
        repeated = np.repeat(np.arange(len(y)), weight.astype(int))
        assert value == pytest.approx(expected(y[repeated], score[repeated]))


def test_one_class_is_nan_with_a_reason():
    y, score = np.ones(4), np.array([0.1, 0.2, 0.3, 0.4])
    assert math.isnan(auc(y, score))
    assert math.isnan(balanced_accuracy(y, (score > 0.2).astype(int), 2))
    assert BINARY.why_undefined(y, score) == "1 of 2 classes among the subjects"
    assert BINARY.why_undefined(np.array([0.0, 1]), score[:2]) == ""


def test_diverged_predictions_have_no_score():
    y, score = np.array([0.0, 1, 1]), np.array([0.1, np.nan, 0.4])
    assert all(math.isnan(value) for value in BINARY.measure(y, score, 0.5).values())
    assert BINARY.why_undefined(y, score) == "predictions are not finite"


def test_balanced_accuracy_and_brier_equal_scikit_learn(labelled):
    y, score = labelled
    predicted = (score >= 0.45).astype(int)
    assert balanced_accuracy(y, predicted, 2) == pytest.approx(oracle.balanced_accuracy_score(y, predicted))
    assert brier(y, score) == pytest.approx(oracle.brier_score_loss(y, score))


def test_multiclass_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 50).astype(float)
    scores = rng.dirichlet(np.ones(3), 50)
    expected = oracle.roc_auc_score(y, scores, multi_class="ovr", average="macro")
    assert macro_auc(y, scores) == pytest.approx(expected)
    equal = np.full(3, 1 / 3)
    values = MULTICLASS.measure(y, scores, equal)
    assert values["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(y, scores.argmax(1)))
    assert values["brier"] == pytest.approx(((scores - np.eye(3)[y.astype(int)]) ** 2).sum(1).mean())
    assert math.isnan(macro_auc(np.clip(y, 0, 1), scores))  # the third class is absent


def test_a_rare_class_is_recognised_by_probabilities_of_the_population():
    y = np.repeat([0.0, 1, 2], [80, 15, 5])
    scores = np.repeat([[0.9, 0.08, 0.02], [0.6, 0.3, 0.1], [0.7, 0.1, 0.2]], [80, 15, 5], axis=0)
    assert MULTICLASS.measure(y, scores, np.array([0.8, 0.15, 0.05]))["balanced_accuracy"] == 1
    assert oracle.balanced_accuracy_score(y, scores.argmax(1)) == pytest.approx(1 / 3)


def test_regression_metrics():
    y, score = np.array([50.0, 60, 70]), np.array([52.0, 60, 64])
    assert mean_absolute_error(y, score) == pytest.approx(8 / 3)
    assert pearson_r(y, score) == pytest.approx(np.corrcoef(y, score)[0, 1])
    assert math.isnan(pearson_r(y, np.full(3, 61.3)))
    assert REGRESSION.why_undefined(y, np.full(3, 61.3)) == "predictions are constant"
    reverse = 100 - score
    assert REGRESSION.measure(y, reverse, 0.5)["r"] == pytest.approx(np.corrcoef(y, reverse)[0, 1])


def test_youden_threshold_maximises_balanced_accuracy():
    y, score = np.array([0.0, 0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.35, 0.8, 0.9])
    # 0.25 and 0.575 both get five of six right; 0.575 is nearer to 0.5
    assert youden_threshold(y, score) == pytest.approx(0.575)
    assert youden_threshold(np.ones(3), score[:3]) == 0.5  # nothing to choose with one class


def test_interval_is_seeded_covers_the_value_and_shrinks_with_n():
    rng = np.random.default_rng(0)
    widths = []
    for n in (40, 400):
        y = (np.arange(n) % 2).astype(float)
        runs = [(y, y + rng.normal(size=n), 0.5) for _ in range(3)]
        draws = bootstrap_draws(BINARY, runs, draws=500)["auc"]
        assert np.array_equal(draws, bootstrap_draws(BINARY, runs, draws=500)["auc"])
        low, high = percentile_interval(draws)
        assert low < np.mean([oracle.roc_auc_score(y, score) for _, score, _ in runs]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("at_once", [1, 130, 10**6])
def test_resamples_are_the_same_in_pieces_of_any_size(at_once):
    pieces = list(resamples(50, 20, 3, at_once))
    drawn = np.random.default_rng(3).integers(0, 50, size=(20, 50))
    expected = np.array([np.bincount(row, minlength=50) for row in drawn])
    assert np.array_equal(np.concatenate(pieces), expected)
    assert max(map(len, pieces)) == max(1, min(20, at_once // 50))


def test_intervals_at_the_size_of_uk_biobank_need_little_memory():
    n = 38_703
    y, score = np.arange(n) % 2.0, np.random.default_rng(0).random(n)
    tracemalloc.start()
    bootstrap_draws(BINARY, [(y, score, np.full(n, 0.5))], draws=120)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_interval_is_near_the_analytic_one():
    rng = np.random.default_rng(1)
    y = rng.normal(size=300)
    score = y + rng.normal(size=300)
    errors = np.abs(score - y)
    low, high = percentile_interval(bootstrap_draws(REGRESSION, [(y, score, 0.5)])["mae"])
    half = 1.96 * errors.std(ddof=1) / np.sqrt(300)
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.1 * half)


def test_all_seeds_see_the_same_resampled_subjects():
    # Two seeds whose errors cancel for every subject: only paired resampling gives no spread at all.
    y = np.zeros(30)
    error = np.linspace(0, 1, 30)
    draws = bootstrap_draws(REGRESSION, [(y, error, 0.5), (y, 1 - error, 0.5)])["mae"]
    assert draws == pytest.approx(0.5)
