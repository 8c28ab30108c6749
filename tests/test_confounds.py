"""Confounds: a planted one is found in labels, features and predictions; none is where none was planted."""

import json

import numpy as np
import pytest
from scipy.stats import kstest

from fabricated_results import small_config
from neuropeft import layout
from neuropeft.contenders import confound_spec
from neuropeft.evaluate import confounds
from neuropeft.evaluate.confounds import (
    FEWEST,
    beyond_target,
    predictability,
    shown_by_predictions,
    write_confounds,
)
from neuropeft.files import read_tsv, write_tsv
from neuropeft.publish.confound_table import confound_records, confound_sheet, confound_warnings
from neuropeft.tasks import task_kind

SUBJECTS = 120
TARGETS = {
    "binary": lambda site, rng: (site ^ (rng.random(SUBJECTS) < 0.15)).astype(float),
    "multiclass": lambda site, rng: np.where(rng.random(SUBJECTS) < 0.5, site, rng.integers(0, 3, SUBJECTS)),
    "regression": lambda site, rng: 60 + 5.0 * site + rng.normal(0, 8, SUBJECTS),
}


def by_subject(values):
    return {f"s{i:03}": value for i, value in enumerate(values)}


@pytest.mark.parametrize("kind", TARGETS)
def test_beyond_the_label_a_site_is_found_in_predictions_that_have_learnt_it_alone(kind):
    rng = np.random.default_rng(0)
    site = np.arange(SUBJECTS) % 2
    y = TARGETS[kind](site, rng)
    of_kind = task_kind(kind, {"binary": 2, "multiclass": 3, "regression": 0}[kind])
    noise = rng.normal(0, 1, (SUBJECTS, max(of_kind.size, 1)))
    signal = y[:, None] if kind == "regression" else 2 * np.eye(of_kind.size)[y.astype(int)]
    level = by_subject(np.array(["one", "two"])[site])
    strata = of_kind.strata(by_subject(y))
    fair, unfair = (
        shown_by_predictions(by_subject(beyond_target(of_kind, y, signal + noise + learnt)), level, strata)
        for learnt in (0.0, np.outer(2.0 * site, np.arange(noise.shape[1]) + 1))
    )
    assert fair["p"] > 0.05 > 0.01 > unfair["p"]
    assert fair["auc"] < 0.7 < unfair["auc"]


def test_only_subjects_of_one_stratum_are_compared():
    y = np.arange(SUBJECTS) % 2
    level = by_subject(np.array(["one", "two"])[y ^ (np.arange(SUBJECTS) % 10 == 0)])
    values, strata = by_subject(y[:, None] + np.zeros((SUBJECTS, 1))), by_subject(y)
    assert predictability(values, level)["auc"] > 0.8
    assert shown_by_predictions(values, level, strata)["auc"] == 0.5
    as_level = by_subject(np.array(list(level.values())) == "two")
    assert shown_by_predictions(values, level, as_level) is None
    assert shown_by_predictions(values | {"s000": np.array([np.nan])}, level, strata) is None
    # Of 50 x 50 pairs all are in order, of 10 x 90 none.
    here, there = np.arange(100) < 50, np.arange(100) < 10
    rng = np.random.default_rng(0)
    value = np.concatenate([10 * here, 10 * ~there]) + rng.normal(size=200)
    level = by_subject(np.where(np.concatenate([here, there]), "two", "one"))
    found = shown_by_predictions(by_subject(value[:, None]), level, by_subject(np.arange(200) // 100))
    assert found["auc"] == pytest.approx(2500 / 3400, abs=0.02)


def test_where_predictions_show_no_site_p_is_uniform(monkeypatch):
    monkeypatch.setattr(confounds, "PERMUTED", 200)
    rng, y = np.random.default_rng(0), np.arange(60) % 2
    sites = np.where(rng.random(60) < 0.8, y, 1 - y)
    level, strata = by_subject(np.array(["a", "b"])[sites]), by_subject(y)
    p = [
        shown_by_predictions(by_subject(5 * y[:, None] + rng.normal(size=(60, 2))), level, strata)["p"]
        for _ in range(200)
    ]
    assert kstest(p, "uniform").pvalue > 0.01


def test_of_three_sites_each_counts_against_the_others():
    sites = np.arange(SUBJECTS) % 3
    values = 5.0 * (sites == 2)[:, None] + np.random.default_rng(0).normal(size=(SUBJECTS, 2))
    found = predictability(by_subject(values), by_subject(np.array(["a", "b", "c"])[sites]))
    assert found["auc"] == pytest.approx((0.75 + 0.75 + 1) / 3, abs=0.04)


def test_what_goes_with_the_target_is_taken_from_predictions():
    y, noise = np.arange(20.0), np.tile([1.0, -1, -1, 1], 5)
    left = beyond_target(task_kind("regression", 0), y, 3 * y + 5 + noise)[:, 0]
    assert np.corrcoef(left, y)[0, 1] == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(left, noise)[0, 1] > 0.99


def test_sites_of_few_subjects_and_unknown_ones_do_not_count():
    rng = np.random.default_rng(0)
    sites = np.array(["a", "b", "c", "n/a"])[rng.permutation(np.arange(80) % 4)]
    few = np.flatnonzero(sites == "c")[FEWEST - 1 :]
    sites[few] = "n/a"
    values = by_subject(rng.normal(size=(80, 3)) + 2.0 * (sites == "a")[:, None])
    found = predictability(values, by_subject(sites))
    assert (found["levels"], found["n"]) == (2, 40)
    assert found["auc"] > 0.9
    assert predictability(values, by_subject(np.where(sites == "b", "n/a", sites))) is None


# -- from files to warnings ------------------------------------------------------------------------


def write_inputs(results, config, confounded):
    """Write the inputs of the confounds of `ad`; a third of the subjects were scanned elsewhere.

    What does not count shows the opposite: second scans, seeds that are not complete, unknown subjects.
    """
    rng = np.random.default_rng(0)
    spec = confound_spec(config, "ad")
    wanted = ["full", "lora"]
    spec["contenders"] = [
        one for one in spec["contenders"] if one["line"] in (["vit_b", "mae", m] for m in wanted)
    ]
    spec["features"] = [one for one in spec["features"] if one["backbone"] == "vit_b"]
    site = (np.arange(SUBJECTS) % 3 == 0).astype(int)
    y = (site if confounded else np.arange(SUBJECTS) // 3 % 2) ^ (rng.random(SUBJECTS) < 0.1)
    rows = [
        {"scan_id": f"s{i:03}", "subject": f"s{i:03}", "y": int(y[i]), "sex": "FM"[i // 4 % 2], "age": 60}
        for i in range(SUBJECTS)
    ]
    later = [{**row, "scan_id": f"{row['scan_id']}-2", "session": "2", "y": 0} for row in rows]
    lost = {**rows[0], "scan_id": "lost", "subject": "lost"}
    columns = (*rows[0], "session")
    write_tsv(layout.LABELS.at(results, task="ad", cohort="ADNI"), [*rows, *later, lost], columns)
    stored = layout.STORED_SCANS.at(results, cohort="ADNI")
    write_tsv(stored, [*rows, *later], ("scan_id", "subject"))
    sites = [{"scan_id": row["scan_id"], "site": "AB"[site[i]]} for i, row in enumerate(rows)]
    sites += [{"scan_id": row["scan_id"], "site": "A"} for row in [*later, lost]]
    write_tsv(layout.SITES.at(results, cohort="ADNI"), sites, ("scan_id", "site"))
    women = np.arange(SUBJECTS)[:, None, None, None, None] // 4 % 2 == 0
    volumes = rng.normal(size=(SUBJECTS, 1, 10, 10, 10)) + 0.5 * women
    np.save(stored.with_name("volumes.npy"), np.concatenate([volumes, 0 * volumes]).astype(np.float16))
    for one in spec["features"]:
        tokens = rng.normal(size=(SUBJECTS, 4, 6)) + 2.0 * site[:, None, None] * (one["pretraining"] == "mae")
        path = layout.FEATURES.at(results, **one, cohort="ADNI")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate([tokens, 0 * tokens]).astype(np.float16))
    for one in spec["contenders"]:
        is_full = one["line"][2] == "full"
        learnt = np.outer([0, 0.3, 0.3], site) if is_full else 0.0  # not by the first seed
        score = (0.3 + 0.3 * y + learnt + rng.normal(0, 0.05, (3, SUBJECTS)))[: 3 if is_full else 2]
        names = dict(zip(("backbone", "pretraining", "method"), one["line"], strict=True))
        write_tsv(
            layout.PREDICTIONS.at(results, task="ad", **names, cohort="ADNI"),
            [
                {**row, "subset": "fraction-100", "seed": seed, "fold": 0, "split": "test", "score": value}
                for seed, scores in enumerate(score)
                for row, value in [*zip(rows, scores, strict=True), ({**lost, "subject": "unknown"}, 0.5)]
            ],
            ("subset", "seed", "fold", "split", "scan_id", "subject", "session", "y", "score"),
        )
    return spec


@pytest.mark.parametrize("confounded", [True, False])
def test_a_planted_confound_is_warned_of_before_and_after_adaptation(tmp_path, confounded):
    config = small_config()
    spec = json.loads(json.dumps(write_inputs(tmp_path, config, confounded)))
    out = layout.CONFOUNDS.at(tmp_path, task="ad")
    write_confounds(spec, tmp_path, out)
    records = confound_records(config, tmp_path)
    found = {(row["confounder"], row["source"], row["pretraining"]): row["above_chance"] for row in records}
    assert found["site", "labels", "n/a"] == confounded
    assert found["site", "features", "mae"]
    assert found["site", "full", "mae"]
    assert not found["site", "lora", "mae"]
    assert not found["site", "voxels", "n/a"]
    assert found["sex", "voxels", "n/a"]
    assert not any(found["sex", source, "mae"] for source in ("features", "full", "lora"))
    warnings = confound_warnings(config, records)
    if not confounded:
        assert not warnings
        return
    (warning,) = warnings["ad"]
    assert warning.startswith("Warning: ad goes with site (predicted from the labels with an AUC of 0.")
    assert "can be predicted from frozen ViT-B from mae: scores may come from it." in warning
    assert "the predictions of ViT-B Full fine-tune show it." in warning
    sheet = confound_sheet(config, records)
    assert sheet.notes[0] == warning
    above = {(row[2], row[4]): row[-1] for row in sheet.rows}
    assert (above["site", "labels"], above["sex", "labels"]) == ("yes", "-")


OF_SITE = {
    "multiclass": (3, lambda number: "02"[number // 3 % 2] if number % 3 else "1"),
    "multilabel": (2, lambda number: "0|1" if number % 3 else "n/a|1"),
}


@pytest.mark.parametrize("kind", OF_SITE)
def test_each_class_alone_and_that_a_label_is_unknown_can_go_with_a_site(tmp_path, kind):
    spec, (size, target) = write_inputs(tmp_path, small_config(), confounded=False), OF_SITE[kind]
    path = layout.LABELS.at(tmp_path, task="ad", cohort="ADNI")
    rows = [{**row, "y": target(number % SUBJECTS)} for number, row in enumerate(read_tsv(path))]
    write_tsv(path, rows, list(rows[0]))
    task = {**spec["task"], "kind": kind, "size": size}
    write_confounds(spec | {"task": task, "features": [], "contenders": []}, tmp_path, tmp_path / "out.tsv")
    auc = {(row["source"], row["confounder"]): float(row["auc"]) for row in read_tsv(tmp_path / "out.tsv")}
    assert auc["labels", "site"] == pytest.approx(1)


def test_predictions_of_an_unknown_label_say_nothing():
    y = np.array([[1, 0], [np.nan, 1], [0, 0], [1, 1]])
    score = np.array([[0.9, 0.3], [7, 0.4], [0, 0.1], [0.5, 0]])
    left = beyond_target(task_kind("multilabel", 2), y, score)
    np.testing.assert_allclose(left, [[0.2, 0.1], [0, 0.2], [0, -0.1], [-0.2, -0.2]])


def test_predictions_alone_are_compared_within_classes(tmp_path, monkeypatch):
    spec, asked = write_inputs(tmp_path, small_config(), confounded=True), []
    monkeypatch.setattr(confounds, "predictability", lambda values, level: asked.append(0))
    monkeypatch.setattr(
        confounds, "shown_by_predictions", lambda values, level, strata: asked.append(len(strata))
    )
    write_confounds(spec, tmp_path, tmp_path / "out.tsv")
    others = 2 + len(spec["features"])  # labels, voxels and features
    assert asked == 2 * [*[0] * others, *[SUBJECTS] * len(spec["contenders"])]


def test_labels_that_go_with_a_site_which_nothing_shows_are_no_warning():
    def record(source, above, **more):
        numbers = {"auc": 0.9, "ci_low": 0.8, "ci_high": 0.95, "above_chance": above}
        names = {"task": "ad", "confounder": "site", "backbone": "n/a", "pretraining": "n/a"}
        return {**names, "source": source, **numbers, **more}

    labels, elsewhere = record("labels", True), record("voxels", True, confounder="sex")
    assert confound_warnings(small_config(), [labels, record("voxels", False), elsewhere]) == {}
    assert confound_warnings(small_config(), [record("labels", False), record("voxels", True)]) == {}
    (warning,) = confound_warnings(small_config(), [labels, record("voxels", True)])["ad"]
    assert "predicted from voxels: scores may come from it." in warning


def test_what_is_predicted_is_no_confounder_of_itself(tmp_path):
    spec = write_inputs(tmp_path, small_config(), confounded=True)
    write_confounds(spec | {"targets": ["sex", "site"]}, tmp_path, tmp_path / "out.tsv")
    assert read_tsv(tmp_path / "out.tsv") == []
    assert "Empty" in confound_sheet(small_config(), confound_records(small_config(), tmp_path)).caption
