"""Test-retest: predictions of two scans of the same person."""

import numpy as np
import pytest

from fabricated_results import small_config
from neuropeft.evaluate.retest import read_pairs, repeatability
from neuropeft.files import write_tsv
from neuropeft.publish.retest_table import retest_sheet
from neuropeft.subsets import WHOLE
from neuropeft.tasks import task_kind

COLUMNS = ("subset", "seed", "fold", "split", "scan_id", "subject", "session", "y", "score")


def row(subject, session, y, score, split="test", seed=0, fold=0):
    values = (WHOLE, seed, fold, split, f"{subject}_{session}", subject, session, y, score)
    return dict(zip(COLUMNS, values, strict=True))


def test_pairs_are_the_first_two_scans_of_test_subjects(tmp_path):
    rows = [row("a", "M12", 61, 65), row("a", "bl", 60, 62), row("a", "M24", 62, 90), row("b", "bl", 70, 71)]
    rows += [row("c", "bl", 50, 50, "val"), row("c", "M12", 51, 80, "val")]
    write_tsv(tmp_path / "p.tsv", [*rows, *(one | {"seed": 1} for one in rows)], COLUMNS)
    pairs = read_pairs(tmp_path / "p.tsv", task_kind("regression", 0), WHOLE, at_home=True)
    assert pairs.tolist() == [[[2, 4]], [[2, 4]]], "errors of a at baseline and after a year, by both seeds"


def test_who_changes_class_between_two_scans_is_no_retest(tmp_path):
    rows = [row("a", "M0", 0, 0.2), row("a", "M6", 1, 0.9), row("b", "M0", 1, 0.7), row("b", "M6", 1, 0.6)]
    write_tsv(tmp_path / "p.tsv", rows, COLUMNS)
    assert read_pairs(tmp_path / "p.tsv", task_kind("binary", 2), WHOLE, True).tolist() == [[[0.7, 0.6]]]


def test_folds_at_home_test_other_subjects_and_elsewhere_the_same(tmp_path):
    rows = [row(name, visit, 0, 0.5, fold=fold) for fold, name in ((1, "a"), (2, "b")) for visit in "12"]
    write_tsv(tmp_path / "home.tsv", rows, COLUMNS)
    kind = task_kind("binary", 2)
    assert read_pairs(tmp_path / "home.tsv", kind, WHOLE, True).shape == (1, 2, 2)
    away = [one | {"split": "zero-shot", "fold": fold} for one in rows for fold in (1, 2)]
    write_tsv(tmp_path / "away.tsv", away, COLUMNS)
    assert read_pairs(tmp_path / "away.tsv", kind, WHOLE, False).shape == (2, 2, 2)


def test_repeatability_finds_what_was_planted():
    rng = np.random.default_rng(0)
    person, noise = rng.normal(0, 3, (1, 400, 1)), rng.normal(0, 1, (2, 400, 2))
    found = repeatability(person + noise)
    assert found["within_sd_low"] < 1 < found["within_sd_high"]
    assert found["icc_low"] < 9 / 10 < found["icc_high"]
    assert found["within_sd"] == pytest.approx(np.sqrt(np.mean(np.diff(person + noise) ** 2) / 2))


def test_a_table_without_pairs_says_so():
    assert retest_sheet(small_config(), []).caption.startswith("Empty: no task has 3 test subjects")
