"""Confounds: a planted one is found in labels, features and predictions; none is where none was planted."""

import json

import numpy as np
import pytest

from fabricated_results import small_config
from neuropeft import layout
from neuropeft.contenders import confound_spec
from neuropeft.evaluate import confounds
from neuropeft.evaluate.confounds import FEWEST, beyond_target, predictability, write_confounds
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
        predictability(by_subject(beyond_target(of_kind, y, signal + noise + learnt)), level, strata)
        for learnt in (0.0, np.outer(2.0 * site, np.arange(noise.shape[1]) + 1))
    )
    assert fair["auc"] < 0.7 < unfair["ci_low"]


def test_only_subjects_of_one_stratum_are_compared():
    y = np.arange(SUBJECTS) % 2
    level = by_subject(np.array(["one", "two"])[y ^ (np.arange(SUBJECTS) % 10 == 0)])
    values, strata = by_subject(y[:, None] + np.zeros((SUBJECTS, 1))), by_subject(y)
    assert predictability(values, level, {})["auc"] > 0.8
    assert predictability(values, level, strata)["auc"] < 0.6


def test_sites_of_few_subjects_and_unknown_ones_do_not_count():
    rng = np.random.default_rng(0)
    sites = np.array(["a", "b", "c", "n/a"])[rng.permutation(np.arange(80) % 4)]
    few = np.flatnonzero(sites == "c")[FEWEST - 1 :]
    sites[few] = "n/a"
    values = by_subject(rng.normal(size=(80, 3)) + 2.0 * (sites == "a")[:, None])
    found = predictability(values, by_subject(sites), {})
    assert (found["levels"], found["n"]) == (2, 40)
    assert found["auc"] > 0.9
    assert predictability(values, by_subject(np.where(sites == "b", "n/a", sites)), {}) is None


# -- from files to warnings ------------------------------------------------------------------------


def write_inputs(results, config, confounded):
    """Write the inputs of the confounds of `ad`; half of the subjects were scanned elsewhere."""
    rng = np.random.default_rng(0)
    spec = confound_spec(config, "ad")
    wanted = ["full", "lora"]
    spec["contenders"] = [
        one for one in spec["contenders"] if one["line"] in (["vit_b", "mae", m] for m in wanted)
    ]
    spec["features"] = [one for one in spec["features"] if one["backbone"] == "vit_b"]
    site = np.arange(SUBJECTS) % 2
    y = (site if confounded else np.arange(SUBJECTS) // 2) % 2 ^ (rng.random(SUBJECTS) < 0.1)
    rows = [
        {"scan_id": f"s{i:03}", "subject": f"s{i:03}", "y": int(y[i]), "sex": "FM"[i // 4 % 2], "age": 60}
        for i in range(SUBJECTS)
    ]
    write_tsv(layout.LABELS.at(results, task="ad", cohort="ADNI"), rows, (*rows[0], "session"))
    stored = layout.STORED_SCANS.at(results, cohort="ADNI")
    write_tsv(stored, rows, ("scan_id", "subject"))
    sites = [{"scan_id": row["scan_id"], "site": "AB"[site[i]]} for i, row in enumerate(rows)]
    write_tsv(layout.SITES.at(results, cohort="ADNI"), sites, ("scan_id", "site"))
    np.save(stored.with_name("volumes.npy"), rng.normal(size=(SUBJECTS, 1, 10, 10, 10)).astype(np.float16))
    for one in spec["features"]:
        tokens = rng.normal(size=(SUBJECTS, 4, 6)) + 2.0 * site[:, None, None] * (one["pretraining"] == "mae")
        path = layout.FEATURES.at(results, **one, cohort="ADNI")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, tokens.astype(np.float16))
    for one in spec["contenders"]:
        learnt = 0.3 * site if one["line"][2] == "full" else 0.0
        score = 0.3 + 0.3 * y + learnt + rng.normal(0, 0.05, (3, SUBJECTS))
        names = dict(zip(("backbone", "pretraining", "method"), one["line"], strict=True))
        write_tsv(
            layout.PREDICTIONS.at(results, task="ad", **names, cohort="ADNI"),
            [
                {**row, "subset": "fraction-100", "seed": seed, "fold": 0, "split": "test", "score": value}
                for seed, scores in enumerate(score)
                for row, value in zip(rows, scores, strict=True)
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
    found = {
        (row["source"], row["backbone"], row["pretraining"]): float(row["ci_low"]) > 0.5
        for row in read_tsv(out)
        if row["confounder"] == "site"
    }
    assert found["labels", "n/a", "n/a"] == confounded
    assert found["features", "vit_b", "mae"]
    assert found["full", "vit_b", "mae"]
    assert not found["lora", "vit_b", "mae"]
    assert not found["voxels", "n/a", "n/a"]
    records = confound_records(config, tmp_path)
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
    assert {row[2] for row in sheet.rows} == {"site", "sex"}


def test_predictions_alone_are_compared_within_classes(tmp_path, monkeypatch):
    spec, strata = write_inputs(tmp_path, small_config(), confounded=True), []
    monkeypatch.setattr(confounds, "predictability", lambda values, level, some: strata.append(len(some)))
    write_confounds(spec, tmp_path, tmp_path / "out.tsv")
    others = 2 + len(spec["features"])  # labels, voxels and features
    assert strata == 2 * [*[0] * others, *[SUBJECTS] * len(spec["contenders"])]


def test_what_is_predicted_is_no_confounder_of_itself(tmp_path):
    spec = write_inputs(tmp_path, small_config(), confounded=True)
    write_confounds(spec | {"targets": ["sex", "site"]}, tmp_path, tmp_path / "out.tsv")
    assert read_tsv(tmp_path / "out.tsv") == []
    assert "Empty" in confound_sheet(small_config(), confound_records(small_config(), tmp_path)).caption
