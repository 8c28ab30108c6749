"""Scores over seeds and folds from stored predictions, and paired comparisons of them."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from fabricated_results import (
    MISSING_CELL,
    MISSING_GROUP,
    contender,
    scored,
    small_config,
    small_results,
    truth,
)
from neuropeft.contenders import NO_BACKBONE, contenders
from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import bootstrap_draws, percentile_interval
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.scores import read_scores
from neuropeft.evaluate.tested import pool, with_rule
from neuropeft.files import read_tsv, write_tsv
from neuropeft.subsets import fraction
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run
from neuropeft.tasks.metrics import youden_threshold

FULL = {"backbone": "vit_b", "method": "full", "subset": fraction(100)}
BINARY, MULTICLASS, REGRESSION = (
    task_kind("binary", 2),
    task_kind("multiclass", 3),
    task_kind("regression", 0),
)


@pytest.fixture(scope="module")
def scores(results):
    return read_scores(small_config(), results, with_draws=True)


def find(scores, metric="auc", cohort="ADNI", **group):
    found = [
        score
        for score in scores
        if (score.metric, score.cohort) == (metric, cohort)
        and all(getattr(score.contender, key) == value for key, value in group.items())
    ]
    assert len(found) == 1
    return found[0]


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
    without_rule = [(run.y, run.score, np.full(len(run.y), np.nan)) for run in of_seeds]
    drawn = bootstrap_draws(BINARY, without_rule, seeds=3)
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


def test_a_threshold_that_is_not_known_yet_is_not_made_up(tmp_path, shared):
    small_results(tmp_path, shared)
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
def folded(tmp_path_factory, shared):
    return small_results(tmp_path_factory.mktemp("folded") / "results", shared, FOLDED)


@pytest.mark.slow
def test_the_folds_of_a_seed_are_scored_as_one_run_over_all_subjects(folded):
    scores = read_scores(FOLDED, folded, with_draws=True)
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


@pytest.mark.slow
def test_a_zero_shot_cohort_is_scored_by_the_mean_over_the_folds_models(folded):
    scores = scored(FOLDED, folded, "cells/age/vit_b/mae/full")
    runs = read_predictions(folded / "predictions/age/vit_b/mae/full/SimB.tsv", REGRESSION)
    score = find(scores, "mae", "SimB", **FULL)
    for seed, value in score.values.items():
        of_folds = [runs[RunKey("", fraction(100), seed, "zero-shot", fold)] for fold in (1, 2, 3)]
        assert value == pytest.approx(np.mean([np.abs(run.y - run.score).mean() for run in of_folds]))
    assert (score.n, len(score.values)) == (30, 3)
    assert score.ci_low < score.mean < score.ci_high


@pytest.mark.slow
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


def test_seeds_tested_on_different_subjects_are_refused(tmp_path, shared):
    config = small_config()
    small_results(tmp_path, shared)
    path = tmp_path / "predictions/ad/vit_b/mae/full/ADNI.tsv"
    rows = [row for row in read_tsv(path) if not (row["seed"] == "1" and row["subject"] == "ADNI000")]
    write_tsv(path, rows, list(rows[0]))
    with pytest.raises(UserError, match="different test subjects"):
        scored(config, tmp_path, "cells/ad/vit_b/mae/full")


def test_comparison_with_full_fine_tuning_is_paired(scores):
    comparisons = {id(comparison.score): comparison for comparison in compare(scores)}
    score = find(scores, cohort="OASIS", backbone="vit_b", method="scratch", subset=fraction(50))
    full = find(scores, cohort="OASIS", **{**FULL, "subset": fraction(50)})
    comparison = comparisons[id(score)]
    assert comparison.difference == pytest.approx(score.mean - full.mean)
    assert (comparison.ci_low, comparison.ci_high) == pytest.approx(
        percentile_interval(score.draws.astype(float) - full.draws)
    )
    assert comparison.ci_high < 0
    # One of 44 comparisons of the task by this metric; Holm leaves nothing of it.
    assert comparison.p < 0.05 < comparison.p_holm
    assert comparison.verdict == "within noise"
    control = find(scores, cohort="OASIS", backbone=NO_BACKBONE, method="mean", subset=fraction(100))
    assert comparisons[id(control)].verdict == "worse"
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


def test_the_reference_can_be_named_and_may_start_from_no_weights(scores):
    config = small_config(statistics={"reference": "scratch"})
    named = {one.group: one for one in contenders(config)}
    found = [dataclasses.replace(one, contender=named[one.contender.group]) for one in scores]
    compared = compare([one for one in found if one.contender.is_method and one.metric == "auc"])
    assert {one.reference for one in compared} == {f"{name}/none/scratch" for name in ("vit_b", "vit_s")}
    assert {one.score.contender.method for one in compared} == {"full", "attention", "lora", "layernorm"}
