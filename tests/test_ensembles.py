"""Ensembles of seeds and of methods, from stored predictions."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fabricated_results import scored, small_config, small_results
from neuropeft.errors import UserError
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.ensembles import mean_run
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.scores import read_scores
from neuropeft.files import read_tsv, write_tsv
from neuropeft.publish.ensemble_table import ensemble_records
from neuropeft.subsets import WHOLE
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run
from neuropeft.tasks.metrics import youden_threshold

BINARY = task_kind("binary", 2)
ASKED = small_config(analyses={"ensembles": True})


@pytest.fixture(scope="module")
def scores(results):
    found = scored(ASKED, results, "ensembles/ad/vit_b")
    return {
        (score.contender.line, score.cohort, score.metric): score
        for score in found
        if (score.contender.task, score.contender.subset) == ("ad", WHOLE)
    }


def runs_of(results, method, cohort, side):
    runs = read_predictions(results / f"predictions/ad/vit_b/mae/{method}/{cohort}.tsv", BINARY)
    return [runs.get(RunKey("", WHOLE, seed, side)) for seed in (0, 1, 2)]


def test_an_ensemble_of_seeds_is_the_mean_of_what_they_predict(results, scores):
    validation = runs_of(results, "full", "ADNI", "val")
    cut = youden_threshold(validation[0].y, np.mean([run.score for run in validation], axis=0))
    for cohort, side in (("ADNI", "test"), ("OASIS", "zero-shot")):
        runs = runs_of(results, "full", cohort, side)
        mean = np.mean([run.score for run in runs], axis=0)
        found = {name: scores[("vit_b", "mae", "full-seeds"), cohort, name] for name in ("auc", "brier")}
        assert found["auc"].values == {0: pytest.approx(roc_auc_score(runs[0].y, mean))}
        assert found["auc"].ci_low < found["auc"].mean <= found["auc"].ci_high
        assert found["brier"].values == {0: pytest.approx(np.mean((mean - runs[0].y) ** 2))}
        balanced = scores[("vit_b", "mae", "full-seeds"), cohort, "balanced_accuracy"]
        assert balanced.mean == pytest.approx(balanced_accuracy_score(runs[0].y, mean >= cut))


def test_an_ensemble_of_methods_has_all_that_start_from_the_same_weights(results, scores):
    methods = ("full", "attention", "lora", "layernorm")
    runs = [runs_of(results, method, "ADNI", "test") for method in methods]
    score = scores[("vit_b", "mae", "all-methods"), "ADNI", "auc"]
    assert score.values == {
        seed: pytest.approx(roc_auc_score(runs[0][seed].y, np.mean([of[seed].score for of in runs], axis=0)))
        for seed in (0, 1)
    }
    assert score.reason == "no predictions of seed 2", "of which LoRA is missing"
    assert scores[("vit_b", "mae", "lora-seeds"), "ADNI", "auc"].values == {}


def test_a_validation_subject_counts_with_the_seeds_that_it_validates():
    one = Run(("a", "b"), np.array([0.0, 1.0]), np.array([0.2, 0.6]), np.array([0.1]))
    other = Run(("b", "c"), np.array([1.0, 0.0]), np.array([0.8, 0.4]), np.array([0.3]))
    mean = mean_run([one, other])
    assert (mean.subjects, mean.y.tolist()) == (("a", "b", "c"), [0, 1, 0])
    assert np.allclose(mean.score, [0.2, 0.7, 0.4])
    assert mean.prior == 0.2
    assert mean_run([one, None]) is None


def test_members_that_were_tested_on_others_are_no_ensemble(tmp_path, results, shared):
    small_results(tmp_path, shared)
    path = tmp_path / "predictions/ad/vit_b/mae/full/OASIS.tsv"
    rows = [row for row in read_tsv(path) if (row["seed"], row["subject"]) != ("1", "OASIS000")]
    write_tsv(path, rows, list(rows[0]))
    with pytest.raises(UserError, match="full-seeds on OASIS were made for different test subjects"):
        scored(ASKED, tmp_path, "ensembles/ad/vit_b")


def test_ensembles_change_no_verdict_on_methods_and_stand_beside_their_members(results, scores):
    def compared(read):
        return {(one.score.contender.group, one.score.cohort, one.score.metric): one for one in compare(read)}

    before = compared(read_scores(small_config(), results, with_draws=True))
    read = read_scores(ASKED, results, with_draws=True)
    after = compared(read)
    assert {place: after[place].p_holm for place in before} == {
        place: one.p_holm for place, one in before.items()
    }
    reference = after[("ad", "vit_b", "mae", "full-seeds", WHOLE), "ADNI", "auc"]
    (row,) = [
        row
        for row in ensemble_records(ASKED, read)
        if (row["method"], row["cohort"], row["subset"]) == ("full-seeds", "ADNI", WHOLE)
    ]
    assert row["difference"] == pytest.approx(reference.difference), "its members are the reference"
    assert (row["difference_ci_low"], row["p"]) == (reference.ci_low, reference.p)
