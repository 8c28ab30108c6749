from pathlib import Path

import pytest

import tiny_cells
from neuropeft.errors import UserError
from neuropeft.subsets import fraction
from neuropeft.tasks import task_kind
from neuropeft.train.labels import Sides, read_sides, shuffled, stored_sessions, subject_weights


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cells.make_store(tmp_path / "store", scans=40, sessions=2)


def sides(store: Path, percent: int = 100, **options) -> Sides:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store, **options)
    return read_sides(split, fraction(percent), task_kind("binary", 2), stored_sessions(store))


def subjects(rows) -> list[str]:
    return list(dict.fromkeys(row["subject"] for row in rows))


def test_all_scans_train_first_scans_validate_nobody_tests(store: Path) -> None:
    found = sides(store)
    assert len(found.train) == 24
    assert len(subjects(found.train)) == 12
    assert [row["session"] for row in found.validation] == ["ses-1"] * 6
    assert {row["side"] for row in (*found.train, *found.validation)} == {"train", "val"}


def test_subjects_weigh_alike_however_many_scans_they_have() -> None:
    rows = [{"subject": subject} for subject in "aaabcc"]
    weights = subject_weights(rows)
    assert sum(weights) == pytest.approx(6), "1 on average"
    assert weights == pytest.approx([2 / 3] * 3 + [2] + [1] * 2)


def test_fractions_are_of_subjects_and_nested(store: Path) -> None:
    quarter, half = sides(store, 25), sides(store, 50)
    assert len(subjects(quarter.train)) == 3
    assert len(quarter.train) == 6
    assert set(subjects(quarter.train)) < set(subjects(half.train))
    assert (len(quarter.validation), len(half.validation)) == (2, 3), (
        "whoever has few labels validates on few"
    )
    assert set(subjects(quarter.validation)) < set(subjects(half.validation))


def test_scans_that_are_not_stored_are_left_out(store: Path) -> None:
    split = tiny_cells.make_split(store.parent / "seed-0.tsv", store)
    sessions = stored_sessions(store)
    del sessions["sub-000_ses-1"], sessions["sub-012_ses-1"]
    found = read_sides(split, fraction(100), task_kind("binary", 2), sessions)
    assert len(found.train) == 23
    assert {row["scan_id"] for row in found.validation if row["subject"] == "sub-012"} == {"sub-012_ses-2"}
    with pytest.raises(UserError, match="none of the train scans"):
        read_sides(split, fraction(100), task_kind("binary", 2), {"sub-012_ses-1": "ses-1"})


def test_shuffling_permutes_targets_among_the_subjects_of_a_side(store: Path) -> None:
    found = sides(store, regression=True)
    permuted = shuffled(found, seed=1)
    for before, after in ((found.train, permuted.train), (found.validation, permuted.validation)):
        assert [row["scan_id"] for row in before] == [row["scan_id"] for row in after]
        assert sorted(row["y"] for row in before) == pytest.approx(sorted(row["y"] for row in after))
        assert [row["y"] for row in before] != [row["y"] for row in after]
        for subject in subjects(after):
            assert len({row["y"] for row in after if row["subject"] == subject}) == 1
    assert shuffled(found, seed=1) == permuted
    assert shuffled(found, seed=2) != permuted
