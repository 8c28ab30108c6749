"""Metrics against scikit-learn and by hand, intervals, and scores over seeds from stored predictions."""

import dataclasses
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as oracle

from fabricated_results import MISSING_CELL, MISSING_GROUP, contender, fabricate, scored, small_config, truth
from neuropeft.contenders import NO_BACKBONE
from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import bootstrap_draws, percentile_interval, resamples
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.tested import pool, with_rule
from neuropeft.files import read_tsv, write_tsv
from neuropeft.subsets import fraction
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run
from neuropeft.tasks.metrics import (
    auc,
    balanced_accuracy,
    brier,
    macro_auc,
    mean_absolute_error,
    pearson_r,
    youden_threshold,
)

FULL = {"backbone": "vit_b", "method": "full", "subset": fraction(100)}
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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fabricated") / "results"
    fabricate(small_config(), folder)
    return folder


@pytest.fixture(scope="module")
def scores(results):
    return scored(small_config(), results)


def find(scores, metric="auc", cohort="ADNI", **group):
    found = [
        score
        for score in scores
        if (score.metric, score.cohort) == (metric, cohort)
        and all(getattr(score.contender, key) == value for key, value in group.items())
    ]
    assert len(found) == 1
    return found[0]


def test_auc_equals_scikit_learn_with_ties(labelled):
    y, score = labelled
    assert auc(y, score) == pytest.approx(oracle.roc_auc_score(y, score))


def test_auc_by_hand():
    # pairs (positive, negative): 0.9 beats both, 0.4 ties with 0.4 and loses to 0.6: 2.5 of 4
    assert auc(np.array([1.0, 0, 1, 0]), np.array([0.9, 0.4, 0.4, 0.6])) == pytest.approx(2.5 / 4)
    assert auc(np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(0.5)


def test_weights_mean_repeated_subjects(labelled):
    y, score = labelled
    (weights,) = resamples(len(y), draws=5, seed=1)
    for weight, value in zip(weights, auc(y, score, weights), strict=True):
        repeated = np.repeat(np.arange(len(y)), weight.astype(int))
        assert value == pytest.approx(oracle.roc_auc_score(y[repeated], score[repeated]))


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


def test_predictions_hold_one_row_per_subject(results):
    config = small_config()
    runs = read_predictions(results / "predictions/ad/vit_b/mae/full/ADNI.tsv", BINARY)
    run = runs[RunKey("", fraction(100), 0, "test")]
    expected = truth(config, "ad", "ADNI", "test")
    assert list(run.subjects) == [subject for subject, _ in expected]
    assert run.y.tolist() == [y for _, y in expected]
    assert not np.array_equal(run.score, 1 - run.y)  # the later, wrong scans do not count


def test_damaged_predictions_are_named(tmp_path):
    write_tsv(tmp_path / "a.tsv", [{"subset": "x", "seed": 0}], ("subset", "seed"))
    with pytest.raises(UserError, match=r"a\.tsv lacks the column 'fold'"):
        read_predictions(tmp_path / "a.tsv", BINARY)


def test_score_is_the_mean_over_seeds_of_the_test_subjects(results, scores):
    runs = read_predictions(results / "predictions/ad/vit_b/mae/full/OASIS.tsv", BINARY)
    of_seeds = [runs[RunKey("", fraction(50), seed, "zero-shot")] for seed in (0, 1, 2)]
    for metric, theirs in (("auc", oracle.roc_auc_score), ("brier", oracle.brier_score_loss)):
        values = [theirs(run.y, run.score) for run in of_seeds]
        score = find(scores, metric, "OASIS", backbone="vit_b", method="full", subset=fraction(50))
        assert score.mean == pytest.approx(np.mean(values))
        assert score.sd == pytest.approx(np.std(values, ddof=1))
        assert (score.n, score.zero_shot, score.complete) == (40, True, True)
        assert score.ci_low < score.mean < score.ci_high
    drawn = bootstrap_draws(BINARY, [(run.y, run.score, np.full(len(run.y), np.nan)) for run in of_seeds])
    assert np.array_equal(score.draws, drawn["brier"].astype(np.float32)), "stored with the scores"
    assert (score.ci_low, score.ci_high) == percentile_interval(drawn["brier"])
    assert {(score.contender.task, score.metric) for score in scores} == {
        *(("ad", metric) for metric in ("auc", "balanced_accuracy", "brier")),
        *(("age", metric) for metric in ("mae", "r")),
    }


def test_threshold_comes_from_validation_and_is_frozen(results, scores):
    folder = results / "predictions/ad/vit_b/mae/full"
    home, away = (read_predictions(folder / f"{cohort}.tsv", BINARY) for cohort in ("ADNI", "OASIS"))
    for cohort, runs, side in (("ADNI", home, "test"), ("OASIS", away, "zero-shot")):
        score = find(scores, "balanced_accuracy", cohort, **FULL)
        for seed, value in score.values.items():
            validation = home[RunKey("", fraction(100), seed, "val")]
            run = runs[RunKey("", fraction(100), seed, side)]
            cut = youden_threshold(validation.y, validation.score)
            assert value == pytest.approx(oracle.balanced_accuracy_score(run.y, run.score >= cut))


def test_a_threshold_that_is_not_known_yet_is_not_made_up(tmp_path):
    fabricate(small_config(), tmp_path)
    (tmp_path / "predictions/ad/vit_b/mae/full/ADNI.tsv").unlink()
    scores = scored(small_config(), tmp_path, "cells/ad/vit_b/mae/full")
    choice = {"cohort": "OASIS", **FULL}
    balanced = find(scores, "balanced_accuracy", **choice)
    assert balanced.values == {}
    assert balanced.reason == "no predictions on validation, which chooses the threshold"
    assert len(find(scores, "auc", **choice).values) == 3


# -- folds -----------------------------------------------------------------------------------------

FOLDED = small_config(splits={"folds": 3})


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folded") / "results"
    fabricate(FOLDED, folder)
    return folder


def test_the_folds_of_a_seed_are_scored_as_one_run_over_all_subjects(folded):
    scores = scored(FOLDED, folded)
    runs = read_predictions(folded / "predictions/ad/vit_b/mae/full/ADNI.tsv", BINARY)
    for method, metric in itertools.product(("full", "scratch"), ("auc", "brier", "balanced_accuracy")):
        score = find(scores, metric, backbone="vit_b", method=method, subset=fraction(50))
        assert (score.n, score.complete, len(score.values)) == (60, True, 3)
        assert score.ci_low < score.mean < score.ci_high
    for seed in (0, 1, 2):
        tested = [runs[RunKey("", fraction(50), seed, "test", fold)] for fold in (1, 2, 3)]
        chosen = [runs[RunKey("", fraction(50), seed, "val", fold)] for fold in (1, 2, 3)]
        y, probability = (np.concatenate([getattr(run, name) for run in tested]) for name in ("y", "score"))
        cuts = [
            np.full(len(run.y), youden_threshold(v.y, v.score)) for run, v in zip(tested, chosen, strict=True)
        ]
        expected = {
            "auc": oracle.roc_auc_score(y, probability),
            "brier": oracle.brier_score_loss(y, probability),
            "balanced_accuracy": oracle.balanced_accuracy_score(y, probability >= np.concatenate(cuts)),
        }
        for metric, value in expected.items():
            score = find(scores, metric, backbone="vit_b", method="full", subset=fraction(50))
            assert score.values[seed] == pytest.approx(value)
    assert find(scores, backbone=NO_BACKBONE, method="ridge_voxels", subset=fraction(10)).n == 60


def test_a_zero_shot_cohort_is_scored_by_the_mean_over_the_folds_models(folded):
    scores = scored(FOLDED, folded, "cells/age/vit_b/mae/full")
    runs = read_predictions(folded / "predictions/age/vit_b/mae/full/SimB.tsv", REGRESSION)
    score = find(scores, "mae", "SimB", **FULL)
    for seed, value in score.values.items():
        of_folds = [runs[RunKey("", fraction(100), seed, "zero-shot", fold)] for fold in (1, 2, 3)]
        assert value == pytest.approx(np.mean([np.abs(run.y - run.score).mean() for run in of_folds]))
    assert (score.n, len(score.values)) == (30, 3)
    assert score.ci_low < score.mean < score.ci_high


def test_a_seed_that_lacks_a_fold_is_missing(folded, tmp_path):
    path = folded / "predictions/ad/vit_b/mae/attention/ADNI.tsv"
    kept, rows = path.read_bytes(), read_tsv(path)
    gone = [row for row in rows if (row["subset"], row["seed"], row["fold"]) != ("fraction-100", "1", "2")]
    try:
        write_tsv(path, gone, list(rows[0]))
        scores = scored(FOLDED, folded, "cells/ad/vit_b/mae/attention")
    finally:
        path.write_bytes(kept)
    score = find(scores, backbone="vit_b", method="attention", subset=fraction(100))
    assert (sorted(score.values), score.n) == ([0, 2], 60)
    assert score.reason == "no predictions of seed 1 (fold 2)"


def test_the_rule_of_each_row_is_that_of_its_fold():
    def fold(*subjects, prior):
        n = len(subjects)
        return Run(subjects, np.arange(n) % 3.0, np.full((n, 3), 1 / 3), np.array(prior))

    one, other = fold("a", "c", prior=(0.2, 0.3, 0.5)), fold("b", prior=(0.5, 0.3, 0.2))
    pooled = pool([with_rule(MULTICLASS, None, run) for run in (one, other)])
    assert pooled.subjects == ("a", "b", "c")
    assert pooled.rule.tolist() == [[0.2, 0.3, 0.5], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]
    # of equal probabilities, the class that was rarest in the fold's training is predicted: 0, 2 and 0
    found = MULTICLASS.measure(np.array([0.0, 2, 1]), pooled.score, pooled.rule)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)


def test_missing_seeds_are_counted_not_averaged_away(scores):
    part = find(scores, backbone="vit_b", method="lora", subset=fraction(100))
    assert MISSING_CELL.seed not in part.values
    assert (len(part.values), len(part.contender.seeds), part.complete) == (2, 3, False)
    assert part.reason == "no predictions of seed 2"
    _, backbone, _, method, subset = MISSING_GROUP
    none = find(scores, backbone=backbone, method=method, subset=subset)
    assert (none.values, none.n) == ({}, None)
    assert math.isnan(none.mean)


def test_controls_are_scored_like_methods(scores):
    constant = find(scores, backbone=NO_BACKBONE, method="mean", subset=fraction(10))
    assert constant.mean == pytest.approx(0.5)
    undefined = find(scores, "r", "SimA", backbone=NO_BACKBONE, method="mean", subset=fraction(100))
    assert (len(undefined.values), undefined.reason) == (0, "predictions are constant")
    partly_known = find(scores, backbone=NO_BACKBONE, method="age_sex", subset=fraction(100))
    assert partly_known.n == 16  # of 20: subjects without an age have no prediction


def test_seeds_tested_on_different_subjects_are_refused(tmp_path):
    config = small_config()
    fabricate(config, tmp_path)
    path = tmp_path / "predictions/ad/vit_b/mae/full/ADNI.tsv"
    rows = [row for row in read_tsv(path) if not (row["seed"] == "1" and row["subject"] == "ADNI000")]
    write_tsv(path, rows, list(rows[0]))
    with pytest.raises(UserError, match="different test subjects"):
        scored(config, tmp_path, "cells/ad/vit_b/mae/full")


def test_comparison_with_full_fine_tuning_is_paired(scores):
    comparisons = {id(comparison.score): comparison for comparison in compare(scores)}
    score = find(scores, cohort="OASIS", backbone="vit_b", method="scratch", subset=fraction(100))
    full = find(scores, cohort="OASIS", **FULL)
    comparison = comparisons[id(score)]
    assert comparison.difference == pytest.approx(score.mean - full.mean)
    assert (comparison.ci_low, comparison.ci_high) == pytest.approx(
        percentile_interval(score.draws.astype(float) - full.draws)
    )
    assert comparison.ci_high < 0
    assert not comparison.within_noise
    # incomplete scores are not compared, nor full fine-tuning with itself
    assert id(find(scores, backbone="vit_b", method="lora", subset=fraction(100))) not in comparisons
    assert id(full) not in comparisons


def test_full_fine_tuning_on_shuffled_labels_is_no_reference(scores):
    place = {"backbone": "vit_b", "subset": fraction(100)}
    compared = [find(scores, "mae", "SimA", method=method, **place) for method in ("shuffled", "lora")]
    assert compare(compared) == []


def test_of_two_ways_of_full_fine_tuning_the_first_is_the_reference(scores):
    config = small_config()
    again = config.methods["full"].model_copy(update={"lr": 1e-5})
    grid = [block.model_copy(update={"methods": [*block.methods, "again"]}) for block in config.grid]
    config = config.model_copy(update={"methods": config.methods | {"again": again}, "grid": grid})
    full = find(scores, cohort="OASIS", **FULL)
    again = contender(config, "ad", "vit_b", "mae", "again", fraction(100))
    second = dataclasses.replace(full, contender=again)
    (comparison,) = compare([full, second])
    assert (comparison.score, comparison.reference) == (second, "vit_b/mae/full")
