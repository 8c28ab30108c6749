"""Controls: fitted on training subjects only, written for every cohort, honest about unknown ages."""

import numpy as np
import pytest

import tiny_cells
from neuropeft import layout
from neuropeft.cohorts.splits import read_split, take_subset
from neuropeft.errors import UserError
from neuropeft.evaluate.controls import write_controls
from neuropeft.evaluate.mean_label_map import write_mean_label_maps
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.files import read_tsv, write_tsv
from neuropeft.store import open_store
from neuropeft.subsets import fraction
from neuropeft.tasks import task_kind
from neuropeft.tasks.metrics import auc

SIZE = 20
LABEL_COLUMNS = ("scan_id", "subject", "session", "y", "sex", "age")


def write_inputs(results, task, kind, ages_known=True, effect=1.0):
    """Write stores, labels and a split of a cohort `home` (90 scans) and a cohort `away` (30 scans)."""
    rng = np.random.default_rng(0)
    for cohort, scans in (("home", 90), ("away", 30)):
        subjects = [f"{cohort}{index // 2:02d}" for index in range(scans)]  # two scans each
        scan_ids = [f"{cohort}{index:02d}" for index in range(scans)]
        ages = 50 + 30 * rng.random(scans)
        y = {
            "binary": (np.arange(scans) // 2 % 2).astype(float),
            "multiclass": (np.arange(scans) // 2 % 3).astype(float),
            "regression": ages,
        }[kind]
        volumes = rng.normal(size=(scans, SIZE, SIZE, SIZE)).astype(np.float32)
        scaled = y / 30 if kind == "regression" else y
        volumes[:, :6, :6, :6] += effect * scaled[:, None, None, None]
        folder = results / "cohorts" / cohort / "store"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "volumes.npy", volumes[:, None].astype(np.float16))
        stored = [
            {"row": row, "scan_id": scan_id, "subject": subject}
            for row, (scan_id, subject) in enumerate(zip(scan_ids, subjects, strict=True))
        ]
        write_tsv(folder / "scans.tsv", stored, ("row", "scan_id", "subject", "session"))
        labels = [
            {
                "scan_id": scan_ids[i],
                "subject": subjects[i],
                "session": str(i % 2),
                "y": int(y[i]) if kind != "regression" else y[i],
                "sex": "FM"[i // 2 % 2] if ages_known else None,
                "age": ages[i] if ages_known else None,
            }
            for i in range(scans)
        ]
        unpacked = {"scan_id": "gone", "subject": "gone", "y": 0, "sex": "F", "age": 60}
        write_tsv(results / "tasks" / task / f"{cohort}.tsv", [*labels, unpacked], LABEL_COLUMNS)
        if cohort == "home":
            sides = {
                s: ("train", "train", "train", "val", "test")[i // 2 % 5] for i, s in enumerate(scan_ids)
            }
            members: dict[str, dict[str, int]] = {}
            for row in labels:
                of_side = members.setdefault(sides[row["scan_id"]], {})
                of_side.setdefault(row["subject"], len(of_side))
            rows = [
                row | {"side": side, "order": members[side][row["subject"]] if side != "test" else None}
                for row in labels
                for side in (sides[row["scan_id"]],)
            ]
            path = results / "splits" / task / "seed-3.tsv"
            write_tsv(path, rows, ("scan_id", "subject", "side", "order", "y"))
    return path


def run(results, kind, target, split, fractions=(100,), methods=("mean", "age_sex", "ridge_voxels")):
    out = results / "controls" / split.parent.name / "seed-3"
    kind = task_kind(kind, {"binary": 2, "multiclass": 3, "regression": 0}[kind])
    write_controls(kind, methods, [target], split, list(map(fraction, fractions)), ["home", "away"], out)
    return {name: read_predictions(out / f"{name}.tsv", kind) for name in ("home", "away")}


def test_binary_controls_find_a_planted_effect_and_the_frequency(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary")
    runs = run(tmp_path, "binary", "diagnosis", split)
    voxels = runs["away"][RunKey("ridge_voxels", fraction(100), 3, "zero-shot")]
    assert auc(voxels.y, voxels.score) > 0.95
    train_y = [float(row["y"]) for row in read_tsv(split) if row["side"] == "train"]
    constant = runs["home"][RunKey("mean", fraction(100), 3, "test")]
    assert constant.score == pytest.approx(np.mean(train_y), abs=1e-6)
    # sex is the class here, as planted, so the subject variables tell everything
    known = runs["home"][RunKey("age_sex", fraction(100), 3, "val")]
    assert auc(known.y, known.score) == 1


def test_every_scan_but_the_training_scans_is_predicted(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary")
    run(tmp_path, "binary", "diagnosis", split)
    sides = {row["scan_id"]: row["side"] for row in read_tsv(split)}
    rows = read_tsv(tmp_path / "controls/ad/seed-3/home.tsv")
    for method in ("mean", "age_sex", "ridge_voxels"):
        predicted = {row["scan_id"]: row["split"] for row in rows if row["method"] == method}
        assert predicted == {scan: side for scan, side in sides.items() if side != "train"}
    away = read_tsv(tmp_path / "controls/ad/seed-3/away.tsv")
    assert {row["split"] for row in away} == {"zero-shot"}
    assert "gone" not in {row["scan_id"] for row in away}  # labelled, but its scan was excluded


def test_labels_outside_training_change_nothing(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary")
    before = run(tmp_path, "binary", "diagnosis", split)
    sides = {row["scan_id"]: row["side"] for row in read_tsv(split)}
    for cohort in ("home", "away"):
        path = tmp_path / "tasks/ad" / f"{cohort}.tsv"
        rows = read_tsv(path)
        for row in rows:
            if sides.get(row["scan_id"]) != "train":
                row["y"] = str(1 - int(row["y"]))
        write_tsv(path, rows, LABEL_COLUMNS)
    after = run(tmp_path, "binary", "diagnosis", split)
    for cohort in ("home", "away"):
        for key, one in before[cohort].items():
            assert np.array_equal(one.score, after[cohort][key].score)


def test_regression_controls(tmp_path):
    split = write_inputs(tmp_path, "age", "regression", effect=3.0)
    runs = run(tmp_path, "regression", "age", split)
    voxels = runs["home"][RunKey("ridge_voxels", fraction(100), 3, "test")]
    constant = runs["home"][RunKey("mean", fraction(100), 3, "test")]
    error, trivial = (np.abs(one.score - one.y).mean() for one in (voxels, constant))
    assert error < 0.5 * trivial
    # the target is no feature of its own: sex alone predicts one value per sex
    assert len(np.unique(runs["home"][RunKey("age_sex", fraction(100), 3, "test")].score)) == 2


def test_sites_that_differ_in_age_predict_it_and_unseen_ones_do_not(tmp_path):
    split = write_inputs(tmp_path, "age", "regression", effect=0.0)
    ages = {row["scan_id"]: float(row["age"]) for row in read_tsv(tmp_path / "tasks/age/home.tsv")[:-1]}
    sites = [{"scan_id": scan, "site": "old" if age > 65 else "young"} for scan, age in ages.items()]
    write_tsv(tmp_path / "cohorts/home/sites.tsv", sites, ("scan_id", "site"))
    away = [{"scan_id": f"away{index:02d}", "site": "elsewhere"} for index in range(30)]
    write_tsv(tmp_path / "cohorts/away/sites.tsv", away[1:], ("scan_id", "site"))
    runs = run(tmp_path, "regression", "age", split, methods=("mean", "sex_site"))
    by_site, constant = (runs["home"][RunKey(m, fraction(100), 3, "test")] for m in ("sex_site", "mean"))
    error, trivial = (np.abs(one.score - one.y).mean() for one in (by_site, constant))
    assert error < 0.75 * trivial
    elsewhere = runs["away"][RunKey("sex_site", fraction(100), 3, "zero-shot")]
    assert len(np.unique(elsewhere.score)) == 2  # by sex alone
    rows = read_tsv(tmp_path / "controls/age/seed-3/away.tsv")
    assert [row["scan_id"] for row in rows if row["score"] == "n/a"] == ["away00"]  # of no site


def test_region_volumes_are_a_control_where_a_cohort_has_them(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary", effect=0.0)
    rng = np.random.default_rng(1)
    columns = ("scan_id", "hippocampus", "mostly_unknown")
    regions = [
        {"scan_id": row["scan_id"], "hippocampus": 4000 - 400 * int(row["y"]) + rng.normal(0, 100)}
        for row in read_tsv(tmp_path / "tasks/ad/home.tsv")[:-1]
    ]
    write_tsv(tmp_path / "cohorts/home/morphometry.tsv", regions, columns)
    runs = run(tmp_path, "binary", "diagnosis", split, methods=("morphometry",))
    found = runs["home"][RunKey("morphometry", fraction(100), 3, "test")]
    assert auc(found.y, found.score) > 0.95
    assert not runs["away"], "a cohort without the table is not predicted"


def test_sex_does_not_predict_itself(tmp_path):
    split = write_inputs(tmp_path, "sex", "binary")  # of which sex is the class
    runs = run(tmp_path, "binary", "sex", split)
    by_age = runs["home"][RunKey("age_sex", fraction(100), 3, "val")]
    assert auc(by_age.y, by_age.score) < 0.9
    assert len(np.unique(by_age.score)) == len(by_age.score)


def test_unknown_age_and_sex_are_said_to_be_unknown(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary", ages_known=False)
    runs = run(tmp_path, "binary", "diagnosis", split)
    assert RunKey("age_sex", fraction(100), 3, "test") not in runs["home"]
    rows = read_tsv(tmp_path / "controls/ad/seed-3/home.tsv")
    assert {row["score"] for row in rows if row["method"] == "age_sex"} == {"n/a"}


def test_multiclass_controls_give_a_probability_per_class(tmp_path):
    split = write_inputs(tmp_path, "stage", "multiclass", effect=2.0)
    runs = run(tmp_path, "multiclass", "stage", split)
    voxels = runs["away"][RunKey("ridge_voxels", fraction(100), 3, "zero-shot")]
    assert voxels.score.sum(1) == pytest.approx(1, abs=1e-6)
    assert (voxels.score.argmax(1) == voxels.y).mean() > 0.6  # chance is a third
    mean = runs["away"][RunKey("mean", fraction(100), 3, "zero-shot")]
    assert mean.prior == pytest.approx(mean.score[0])


def test_one_class_in_training_is_an_error(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary")
    path = tmp_path / "tasks/ad/home.tsv"
    write_tsv(path, [row | {"y": "0"} for row in read_tsv(path)], LABEL_COLUMNS)
    with pytest.raises(UserError, match="one class"):
        run(tmp_path, "binary", "diagnosis", split)


def test_a_fraction_is_fitted_on_its_own_subjects_and_validated_by_its_share(tmp_path):
    split = write_inputs(tmp_path, "ad", "binary")
    whole = run(tmp_path, "binary", "diagnosis", split)["home"]
    both = run(tmp_path, "binary", "diagnosis", split, fractions=(20, 100))["home"]
    assert {str(key.subset) for key in both} == {"fraction-20", "fraction-100"}
    for key, one in whole.items():
        assert np.array_equal(one.score, both[key].score)
    few = take_subset(read_split(split), fraction(20), task_kind("binary", 2))
    constant = both[RunKey("mean", fraction(20), 3, "test")]
    assert constant.score == pytest.approx(np.mean([row["y"] for row in few]), abs=1e-6)
    sizes = [len(both[RunKey("mean", fraction(percent), 3, "val")].subjects) for percent in (20, 100)]
    assert sizes == [2, 9]


def test_the_mean_label_map_is_what_most_training_subjects_have(tmp_path):
    for cohort, scans in (("home", 16), ("away", 4)):
        folder = tiny_cells.make_store(layout.STORE.at(tmp_path, cohort=cohort), scans=scans)
        tiny_cells.add_label_maps(folder)
    home, away = (open_store(layout.STORE.at(tmp_path, cohort=cohort)) for cohort in ("home", "away"))
    split = tiny_cells.make_split(
        layout.SPLIT.at(tmp_path, task="regions", split="seed-0"), home.path, validation=2, test=4
    )
    named = [row | {"y": row["scan_id"]} for row in read_tsv(split)]
    write_tsv(split, named, list(named[0]))
    labels = [{**row, "y": row["scan_id"]} for row in away.rows]
    write_tsv(layout.LABELS.at(tmp_path, task="regions", cohort="away"), labels, ("scan_id", "subject", "y"))
    kind, out = task_kind("segmentation", 2, tiny_cells.DENSE["segmentation"]), tmp_path / "controls"
    write_mean_label_maps(kind, "mean", split, [fraction(50), fraction(100)], ["home", "away"], out)

    def dice(train, one, value):
        shares = np.stack([(train == label).mean(0) for label in (0, 1, 2)])
        found, true = shares.argmax(0) == value, one == value
        return 2 * (found & true).sum() / (found.sum() + true.sum())

    for store, cohort, side, first in ((home, "home", "test", 12), (away, "away", "zero-shot", 0)):
        runs = read_predictions(out / f"{cohort}.tsv", kind)
        for share, trained in ((50, 5), (100, 10)):
            run = runs[RunKey("mean", fraction(share), 0, side)]
            assert len(run.subjects) == 4
            for place, scores in enumerate(run.score):
                wanted = [dice(home.labels[:trained], store.labels[first + place], value) for value in (1, 2)]
                np.testing.assert_allclose(scores[[0, 3]], wanted, atol=1e-5)
