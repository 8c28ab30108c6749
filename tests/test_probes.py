"""Probes: what they find and what they must not, who shares an inner fold, features, scores by chance."""

import numpy as np
import pytest
import torch

from neuropeft import layout
from neuropeft.backbones import vit
from neuropeft.backbones.checkpoints import save_encoder
from neuropeft.cohorts.splits import read_split, take_subset
from neuropeft.errors import UserError
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.probes import write_probes
from neuropeft.evaluate.token_kernel import mean_tokens, token_kernel
from neuropeft.files import read_tsv, write_tsv
from neuropeft.grid import Cell
from neuropeft.probe_grid import Probed, probe_folder, probe_groups, probed
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, PROBES, null_method
from neuropeft.subsets import fraction
from neuropeft.tasks import task_kind
from neuropeft.tasks.linear import inner_folds
from neuropeft.tasks.metrics import auc, pearson_r
from neuropeft.train.features import write_features

SPLIT = "seed-3"
TOKENS, WIDTH = 8, 6
SCANS = {"home": 120, "away": 40}
LABEL_COLUMNS = ("scan_id", "subject", "session", "y", "sex", "age")
VIT = {"kind": "vit", "width": 48, "depth": 2, "heads": 2, "patch_size": 8, "image_size": 16}


def write_inputs(results, kind, effect=2.0):
    """Write tokens, labels and a split of two scans per subject; return what `write_probes` takes.

    The target is added to one token and taken from another, so that the mean over tokens does not hold it.
    """
    rng = np.random.default_rng(0)
    files = []
    for cohort, scans in SCANS.items():
        subject = np.arange(scans) // 2
        y = {"binary": subject % 2, "multiclass": subject % 3, "regression": 50 + subject * 7 % 31}[kind]
        tokens = rng.normal(size=(scans, TOKENS, WIDTH))
        shift = effect * (y - y.mean()) / y.std()
        tokens[:, 2] += shift[:, None]
        tokens[:, 5] -= shift[:, None]
        rows = [
            {
                "scan_id": f"{cohort}{i:03}",
                "subject": f"{cohort}{subject[i]:03}",
                "session": i % 2,
                "y": y[i],
                "side": ("train", "train", "train", "val", "test")[subject[i] % 5],
                "order": (subject[i] // 5 * 3 + subject[i] % 5, subject[i] // 5, None)[
                    max(subject[i] % 5 - 2, 0)
                ],
            }
            for i in range(scans)
        ]
        write_tsv(results / f"cohorts/{cohort}/store/scans.tsv", rows, ("scan_id", "subject", "session"))
        write_tsv(results / f"tasks/t/{cohort}.tsv", rows, LABEL_COLUMNS)
        path = layout.FEATURES.at(results, pretraining="mae", backbone="vit", fold_part="", cohort=cohort)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, tokens.astype(np.float16))
        files.append(path)
        if cohort == "home":
            split = results / f"splits/t/{SPLIT}.tsv"
            write_tsv(split, rows, ("scan_id", "subject", "side", "order", "y"))
    return split, files


def run(results, kind, split, files, fractions=(100,)):
    out = probe_folder(results, Probed("t", "vit", "mae"), SPLIT)
    kind = task_kind(kind, {"binary": 2, "multiclass": 3, "regression": 0}[kind])
    write_probes(kind, split, list(map(fraction, fractions)), list(SCANS), files, out)
    return {
        name: read_predictions(out / f"{name}.tsv", kind)
        for name in (*SCANS, *(f"{cohort}.null" for cohort in SCANS))
    }


def test_the_place_of_a_token_counts_for_the_probe_of_all_tokens_alone(tmp_path):
    runs = run(tmp_path, "binary", *write_inputs(tmp_path, "binary"))
    for cohort, side in (("home", "test"), ("away", "zero-shot")):
        found = {probe: runs[cohort][RunKey(probe, fraction(100), 3, side)] for probe in PROBES}
        assert auc(found["probe_concat"].y, found["probe_concat"].score) > 0.95
        for probe in ("probe_mean", "knn"):
            assert 0.2 < auc(found[probe].y, found[probe].score) < 0.8


def test_values_are_found_and_permuted_ones_are_not(tmp_path):
    runs = run(tmp_path, "regression", *write_inputs(tmp_path, "regression"))
    found = runs["away"][RunKey("probe_concat", fraction(100), 3, "zero-shot")]
    assert pearson_r(found.y, found.score) > 0.9
    null = [
        runs["away.null"][RunKey(null_method("probe_concat", number), fraction(100), 3, "zero-shot")]
        for number in range(PERMUTATIONS)
    ]
    assert all(pearson_r(one.y, one.score) < 0.8 for one in null)
    assert abs(np.mean([pearson_r(one.y, one.score) for one in null])) < 0.3
    assert null[0].subjects == found.subjects


def test_random_labels_are_not_found(tmp_path):
    split, files = write_inputs(tmp_path, "binary", effect=0.0)
    runs = run(tmp_path, "binary", split, files)
    for probe in PERMUTED:
        found = runs["away"][RunKey(probe, fraction(100), 3, "zero-shot")]
        area = auc(found.y, found.score)
        null = [
            runs["away.null"][RunKey(null_method(probe, number), fraction(100), 3, "zero-shot")]
            for number in range(PERMUTATIONS)
        ]
        assert 0.2 < area < 0.8
        p = (1 + sum(auc(one.y, one.score) >= area for one in null)) / (1 + PERMUTATIONS)
        assert p > 0.05


def test_three_classes_get_a_probability_each(tmp_path):
    runs = run(tmp_path, "multiclass", *write_inputs(tmp_path, "multiclass", effect=4.0))
    for probe in PROBES:
        found = runs["away"][RunKey(probe, fraction(100), 3, "zero-shot")]
        assert found.score.sum(1) == pytest.approx(1, abs=1e-5)
        assert found.prior.sum() == pytest.approx(1, abs=1e-5)
    found = runs["away"][RunKey("probe_concat", fraction(100), 3, "zero-shot")]
    assert (found.score.argmax(1) == found.y).mean() > 0.8
    assert RunKey(null_method("probe_concat", 0), fraction(100), 3, "test") in runs["home.null"]


def test_every_scan_but_the_training_scans_is_predicted_at_every_fraction(tmp_path):
    split, files = write_inputs(tmp_path, "binary")
    run(tmp_path, "binary", split, files, fractions=(20, 100))
    sides = read_split(split)
    rows = read_tsv(probe_folder(tmp_path, Probed("t", "vit", "mae"), SPLIT) / "home.tsv")
    for probe in PROBES:
        for subset in (fraction(20), fraction(100)):
            of_run = [row for row in rows if (row["method"], row["subset"]) == (probe, str(subset))]
            validation = take_subset(sides, subset, task_kind("binary", 2), "val")
            assert {row["scan_id"]: row["split"] for row in of_run} == {
                row["scan_id"]: row["side"]
                for row in (*validation, *(row for row in sides if row["side"] == "test"))
            }
    scores = {
        subset: [row["score"] for row in rows if row["subset"] == subset]
        for subset in ("fraction-20", "fraction-100")
    }
    assert scores["fraction-20"] != scores["fraction-100"]


def test_labels_outside_training_change_nothing(tmp_path):
    split, files = write_inputs(tmp_path, "binary")
    before = run(tmp_path, "binary", split, files)
    sides = {row["scan_id"]: row["side"] for row in read_tsv(split)}
    for cohort in SCANS:
        path = tmp_path / f"tasks/t/{cohort}.tsv"
        rows = read_tsv(path)
        for row in rows:
            if sides.get(row["scan_id"]) != "train":
                row["y"] = str(1 - int(row["y"]))
        write_tsv(path, rows, LABEL_COLUMNS)
    after = run(tmp_path, "binary", split, files)
    for name, runs in before.items():
        for key, one in runs.items():
            assert np.array_equal(one.score, after[name][key].score)


def test_a_subjects_scans_share_an_inner_fold():
    subjects = np.array([f"s{i // 3}" for i in range(60)])
    folds = inner_folds(subjects, np.repeat(np.arange(20) % 2, 3).astype(float))
    assert len(set(folds)) == 5
    assert all(len(set(folds[subjects == name])) == 1 for name in set(subjects))


def test_the_kernel_is_that_of_centred_tokens_and_the_mean_is_over_tokens(tmp_path):
    tokens = np.random.default_rng(1).normal(3, 1, (10, 11, 4)).astype(np.float16)
    order = [4, 2, 9, 0, 7]
    flat = tokens[order].astype(float).reshape(5, -1)
    centred = flat - flat[:3].mean(0)
    assert token_kernel([(tokens, order)], 3) == pytest.approx(centred @ centred[:3].T, rel=1e-3, abs=1e-3)
    two = token_kernel([(tokens, order[:4]), (tokens, order[4:])], 3)
    assert two == pytest.approx(token_kernel([(tokens, order)], 3))
    assert mean_tokens([(tokens, order)]) == pytest.approx(tokens[order].astype(float).mean(1))


def test_mistakes_are_told(tmp_path):
    split, files = write_inputs(tmp_path, "binary")
    np.save(files[1], np.zeros((3, TOKENS, WIDTH), np.float16))
    with pytest.raises(UserError, match="delete it and run the workflow again"):
        run(tmp_path, "binary", split, files)
    split, files = write_inputs(tmp_path, "binary")
    path = tmp_path / "tasks/t/home.tsv"
    write_tsv(path, [row | {"y": "0"} for row in read_tsv(path)], LABEL_COLUMNS)
    with pytest.raises(UserError, match="one class"):
        run(tmp_path, "binary", split, files)


# -- features --------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """A store of five scans."""
    folder = tmp_path / "store"
    write_tsv(folder / "scans.tsv", [{"scan_id": f"s{i}"} for i in range(5)], ("scan_id",))
    volumes = np.random.default_rng(0).normal(size=(5, 1, 16, 16, 16))
    np.save(folder / "volumes.npy", volumes.astype(np.float16))
    return folder


def test_features_of_the_untrained_backbone_follow_from_the_seed_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr("neuropeft.train.features.ROWS_AT_ONCE", 2)  # several pieces
    torch.manual_seed(1)
    write_features(VIT, None, store, tmp_path / "one.npy", "cpu")
    torch.manual_seed(2)
    write_features(VIT, None, store, tmp_path / "two.npy", "cpu")
    one, two = (np.load(tmp_path / name, mmap_mode="r") for name in ("one.npy", "two.npy"))
    assert (one.shape, one.dtype) == ((5, 8, 48), np.dtype("<f2"))
    assert np.array_equal(one, two)
    assert len(np.unique(one[:, 0, 0])) == 5


def test_features_of_an_encoder_are_its_tokens_after_the_final_norm(store, tmp_path):
    encoder = vit.build(VIT).eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder, {})
    write_features(VIT, tmp_path / "encoder.safetensors", store, tmp_path / "out.npy", "cpu")
    x = torch.from_numpy(np.load(store / "volumes.npy")).float()
    with torch.no_grad():
        assert np.load(tmp_path / "out.npy") == pytest.approx(encoder.tokens(x).numpy(), abs=2e-3)
        assert torch.equal(encoder.tokens(x).mean(1), encoder(x))


def test_features_that_half_precision_cannot_hold_are_refused(store, tmp_path):
    encoder = vit.build(VIT)
    with torch.no_grad():
        encoder.norm.weight.mul_(1e6)
    save_encoder(tmp_path / "encoder.safetensors", encoder, {})
    with pytest.raises(UserError, match="not finite"):
        write_features(VIT, tmp_path / "encoder.safetensors", store, tmp_path / "out.npy", "cpu")
    assert not (tmp_path / "out.npy").exists()


# -- the grid --------------------------------------------------------------------------------------


def test_every_start_of_a_task_and_backbone_is_probed_beside_the_untrained_backbone():
    cells = [
        Cell("ad", "vit", "mae", "lora", fraction(100), 0),
        Cell("ad", "vit", "mae", "lora", fraction(10), 1),
        Cell("age", "cnn", "none", "scratch", fraction(50), 0),
    ]
    assert probed(cells) == [("ad", "vit", "mae"), ("ad", "vit", "none"), ("age", "cnn", "none")]
    groups = probe_groups(cells)
    assert len(groups) == len(set(groups)) == len(PROBES) * (2 * 2 + 1)
    assert ("ad", "vit", "none", "knn", fraction(10)) in groups
    assert ("age", "cnn", "none", "probe_mean", fraction(50)) in groups
