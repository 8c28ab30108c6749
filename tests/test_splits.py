"""Splits: by subject, stratified, nested, with a fixed test side; and the leaks that checks must find."""

import math
from collections import Counter
from pathlib import Path

import pytest

from neuropeft.cohorts.splits import (
    check_split,
    held_out_subjects,
    make_split,
    read_split,
    session_key,
    split_digest,
    take_subset,
    write_split,
)
from neuropeft.errors import UserError
from neuropeft.subsets import Subset, fraction, shots
from neuropeft.tasks import task_kind

BINARY = task_kind("binary", 2)


def people(classes: dict[int, int], scans: int = 1) -> list[dict]:
    """Rows of subjects of each class, half of them women, with so many scans each."""
    return [
        {
            "scan_id": f"sub-{y}x{i}_ses-{v}",
            "subject": f"{y}x{i}",
            "session": str(v),
            "y": y,
            "sex": "FM"[i % 2],
        }
        for y, count in classes.items()
        for i in range(count)
        for v in range(scans)
    ]


def aged(count: int) -> list[dict]:
    return [
        {"scan_id": f"sub-{i}", "subject": str(i), "session": None, "y": 20.0 + i, "sex": None}
        for i in range(count)
    ]


def split(
    rows: list[dict],
    seed: int = 0,
    test: float = 0.2,
    validation: float = 0.1,
    kind: str = "binary",
    task: str = "ad",
) -> list:
    made = make_split(rows, seed, test, validation, task_kind(kind, 2), task)
    check_split(made, "a split")
    return made


def side(rows: list[dict], name: str) -> set[str]:
    return {row["subject"] for row in rows if row["side"] == name}


def subjects(rows: list[dict]) -> set[str]:
    return {row["subject"] for row in rows}


# -- making ----------------------------------------------------------------------------------------


def test_shares_and_strata() -> None:
    rows = people({0: 120, 1: 40}, scans=2)
    made = split(rows)
    stratum = {row["subject"]: (row["y"], row["sex"]) for row in rows}
    for name, share in (("test", 0.2), ("val", 0.1), ("train", 0.7)):
        count = Counter(stratum[subject] for subject in side(made, name))
        for y, size in ((0, 60), (1, 20)):
            assert abs(count[y, "F"] - share * size) <= 1
            assert abs(count[y, "M"] - share * size) <= 1
    assert len(made) == len(rows), "every scan comes along"


def test_test_side_is_the_same_for_all_seeds_and_nearly_for_all_tasks() -> None:
    rows = people({0: 50, 1: 50})
    first, other = split(rows, seed=0), split(rows, seed=1)
    assert side(first, "test") == side(other, "test")
    assert side(first, "val") != side(other, "val")
    orders = [
        {row["subject"]: row["order"] for row in rows if row["side"] == "train"} for rows in (first, other)
    ]
    both = orders[0].keys() & orders[1].keys()
    soonest = [set(sorted(both, key=order.__getitem__)[:16]) for order in orders]
    assert len(soonest[0] & soonest[1]) <= 10, "the smallest fractions have subjects of their own"
    ages = [row | {"y": 50.0 + (7 * i) % 40} for i, row in enumerate(rows)]
    of_ages = split(ages, kind="regression", task="age")
    assert len(side(first, "test") & side(of_ages, "test")) >= 14  # of 20; 4 by chance


def test_same_input_same_split_in_any_order_and_as_text() -> None:
    rows = people({0: 20, 1: 20}, scans=2)
    made = split(rows)
    assert split(rows[::-1]) == made
    text = [{key: str(value) for key, value in row.items()} for row in rows]
    assert [row["side"] for row in split(text)] == [row["side"] for row in made]
    assert side(made, "test") == {"0x10", "0x17", "0x18", "0x19", "1x1", "1x11", "1x16", "1x4"}, (
        "on every machine"
    )


def test_a_new_subject_moves_few_others() -> None:
    old, new = split(people({0: 100, 1: 100})), split(people({0: 101, 1: 100}))
    moved = {row["subject"]: row["side"] for row in old}.items() - {
        row["subject"]: row["side"] for row in new
    }.items()
    assert len(moved) <= 3


@pytest.mark.parametrize("classes", [{0: 3, 1: 3}, {0: 100, 1: 3}, {0: 4, 1: 50, 2: 3}])
def test_every_class_is_on_every_side(classes: dict[int, int]) -> None:
    for seed in range(5):
        for shares in ((0.2, 0.1), (0.5, 0.45)):
            made = split(people(classes), seed, *shares, kind="multiclass")
            for name in ("train", "val", "test"):
                assert {row["y"] for row in made if row["side"] == name} == set(classes)


def test_large_shares_leave_somebody_to_train_on() -> None:
    for kind, rows in (("binary", people({0: 3, 1: 4})), ("regression", aged(4))):
        assert {row["side"] for row in split(rows, 0, 0.6, 0.39, kind)} == {"train", "val", "test"}
    trained = {row["y"] for row in split(people({0: 3, 1: 40}), 0, 0.6, 0.3) if row["side"] == "train"}
    assert trained == {0, 1}


def test_every_prefix_of_the_order_is_stratified() -> None:
    rows = people({0: 90, 1: 30})
    train = [row for row in split(rows) if row["side"] == "train"]
    sex = {row["subject"]: row["sex"] for row in rows}
    y = [row["y"] for row in sorted(train, key=lambda row: row["order"])]
    sexes = [sex[row["subject"]] for row in sorted(train, key=lambda row: row["order"])]
    assert set(y[:2]) == {0, 1}
    for size in range(1, len(train) + 1):
        assert abs(sum(y[:size]) - size * sum(y) / len(y)) <= 1
        assert abs(sexes[:size].count("F") - size * sexes.count("F") / len(y)) <= 2


def test_regression_bins() -> None:
    for seed in range(3):
        made = split(aged(100), seed, kind="regression")
        for name in ("train", "val", "test"):
            mean = sum(row["y"] for row in made if row["side"] == name) / len(side(made, name))
            assert abs(mean - 69.5) < 3
        order = sorted((row for row in made if row["side"] == "train"), key=lambda row: row["order"])
        assert {int(row["y"] - 20) // 20 for row in order[:5]} == set(range(5))
    assert {row["side"] for row in split(aged(3), kind="regression")} == {"train", "val", "test"}


def test_the_first_session_is_known_by_name_or_number() -> None:
    for names in (
        ["sc", "bl", "m06", "m12"],
        ["Screening", "month12"],
        ["pre", "post"],
        ["2", "10"],
        ["a", "b"],
    ):
        assert sorted(reversed(names), key=session_key) == names


def test_subject_whose_class_changes_counts_by_the_first_scan() -> None:
    rows = people({0: 30, 1: 3})
    later = [row | {"session": "10", "scan_id": f"{row['scan_id']}0", "y": 1} for row in rows[:3]]
    earlier = [row | {"session": "9"} for row in rows]
    assert {row["subject"]: row["side"] for row in split(later + earlier)} == {
        row["subject"]: row["side"] for row in split(rows)
    }


@pytest.mark.parametrize("classes", [{0: 9, 1: 2}, {0: 9}, {1: 9}])
def test_class_with_too_few_subjects(classes: dict[int, int]) -> None:
    with pytest.raises(UserError, match=r"task 'ad' cannot be split: class [01] has [02] usable subjects"):
        split(people(classes, scans=2))
    with pytest.raises(UserError, match="there are 2 usable subjects"):
        split(aged(2), kind="regression")


# -- folds -----------------------------------------------------------------------------------------


def folds_of(
    rows: list[dict], folds: int, seed: int = 0, kind: str = "binary", task: str = "ad"
) -> list[list[dict]]:
    """The split of each fold."""
    made = [
        make_split(rows, seed, 0, 0.15, task_kind(kind, 2), task, fold=fold, folds=folds)
        for fold in range(1, folds + 1)
    ]
    for one in made:
        check_split(one, "a split")
    return made


def with_ages(rows: list[dict]) -> list[dict]:
    return [row | {"age": 50.5 + (37 * i) % 41} for i, row in enumerate(rows)]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_subject_is_tested_once_whatever_the_seed(folds: int) -> None:
    rows = with_ages(people({0: 33, 1: 20}, scans=2))
    of_seeds = [[side(made, "test") for made in folds_of(rows, folds, seed)] for seed in (0, 1)]
    assert of_seeds[0] == of_seeds[1], "or another seed would pretrain anew"
    assert Counter(subject for tested in of_seeds[0] for subject in tested) == Counter(subjects(rows))
    assert max(map(len, of_seeds[0])) - min(map(len, of_seeds[0])) <= 1
    for y, size in ((0, 33), (1, 20)):
        for tested in of_seeds[0]:
            assert abs(sum(name.startswith(f"{y}x") for name in tested) - size / folds) < 3
    validated = [[side(made, "val") for made in folds_of(rows, folds, seed)] for seed in (0, 1)]
    assert all(one != other for one, other in zip(*validated, strict=True))


def test_tasks_of_the_same_people_and_strata_have_the_same_folds() -> None:
    rows = with_ages(people({0: 60}))  # healthy, of half whom the sex is F
    sexes = [row | {"y": "FM".index(row["sex"])} for row in rows]
    other_way = [row | {"y": "MF".index(row["sex"])} for row in rows]
    ages = [row | {"y": row["age"]} for row in rows]
    as_text = [row | {"y": str(row["age"]), "age": str(row["age"])} for row in rows]
    tasks = (
        folds_of(sexes, 5),
        folds_of(other_way, 5),
        folds_of(ages, 5, kind="regression", task="age"),
        folds_of(as_text, 5, kind="regression", task="age"),
    )
    tested = [[side(made, "test") for made in of_task] for of_task in tasks]
    assert tested[0] == tested[1] == tested[2] == tested[3]


@pytest.mark.parametrize(
    ("classes", "folds"), [({0: 5, 1: 40}, 5), ({0: 4, 1: 4}, 2), ({0: 50, 1: 3, 2: 3}, 3)]
)
def test_every_class_is_on_every_side_of_every_fold(classes: dict[int, int], folds: int) -> None:
    for rows in (people(classes), with_ages(people(classes))):
        for seed in range(3):
            for made in folds_of(rows, folds, seed, kind="multiclass"):
                for name in ("train", "val", "test"):
                    assert {row["y"] for row in made if row["side"] == name} == set(classes)


@pytest.mark.parametrize(("size", "folds", "needed"), [(4, 5, 5), (3, 2, 4), (2, 3, 3)])
def test_too_few_subjects_for_folds(size: int, folds: int, needed: int) -> None:
    words = rf"task 'ad' cannot be split into {folds} folds: class 1 has {size} .*{needed} are needed"
    with pytest.raises(UserError, match=words):
        folds_of(people({0: 20, 1: size}), folds)
    with pytest.raises(UserError, match=rf"there are {size} usable subjects"):
        folds_of(aged(size), folds, kind="regression")


# -- fractions -------------------------------------------------------------------------------------


def test_fractions_are_nested_and_take_whole_subjects() -> None:
    made = split(people({0: 31, 1: 20}, scans=3))
    n_train = len(side(made, "train"))
    smaller: set[str] = set()
    for percent in (1, 10, 25, 50, 75, 100):
        taken = take_subset(made, fraction(percent), BINARY)
        assert len(subjects(taken)) == -(-percent * n_train // 100)
        assert len(taken) == 3 * len(subjects(taken))
        assert smaller <= subjects(taken) <= side(made, "train")
        smaller = subjects(taken)
    assert smaller == side(made, "train")


def test_validation_is_of_the_same_fraction_nested_and_stratified() -> None:
    made = split(people({0: 60, 1: 40}, scans=2), validation=0.2)
    smaller: set[str] = set()
    for percent, size in ((1, 1), (10, 2), (25, 5), (50, 10), (100, 20)):
        taken = take_subset(made, fraction(percent), BINARY, "val")
        assert len(subjects(taken)) == size
        assert smaller <= subjects(taken) <= side(made, "val")
        assert size < 2 or {row["y"] for row in taken} == {0, 1}
        smaller = subjects(taken)


@pytest.mark.parametrize("subset", [fraction(30), shots(3)])
def test_a_subset_of_a_split_that_was_read_as_text(subset: Subset) -> None:
    made = split(people({0: 20, 1: 20}))
    text = [{key: "n/a" if value is None else str(value) for key, value in row.items()} for row in made]
    assert [row["scan_id"] for row in take_subset(text, subset, BINARY)] == [
        row["scan_id"] for row in take_subset(made, subset, BINARY)
    ]


def labelled(count: int) -> list[dict]:
    """Rows of subjects with a common label, a rare one, both, or none."""
    labels = ("1|0", "1|0", "0|1", "1|1", "0|0")
    return [row | {"y": labels[i % len(labels)]} for i, row in enumerate(aged(count))]


@pytest.mark.parametrize(
    ("kind", "rows", "strata"),
    [
        ("binary", people({0: 60, 1: 30}, scans=2), 2),
        ("regression", aged(100), 5),
        ("multilabel", labelled(100), 3),
    ],
)
def test_shots_are_the_first_subjects_of_each_stratum(kind: str, rows: list[dict], strata: int) -> None:
    made = split(rows, kind=kind, validation=0.2)
    spoken_for = task_kind(kind, 2)
    order = {row["subject"]: row["order"] for row in made if row["side"] == "train"}
    stratum = spoken_for.strata({row["subject"]: row["y"] for row in made if row["side"] == "train"})
    smaller: dict[str, set[str]] = {"train": set(), "val": set()}
    for number in (1, 2, 5):
        taken = take_subset(made, shots(number), spoken_for)
        members = subjects(taken)
        assert Counter(stratum[subject] for subject in members) == dict.fromkeys(range(strata), number)
        left = order.keys() - members
        assert all(
            order[subject] > max(order[one] for one in members if stratum[one] == stratum[subject])
            for subject in left
        )
        validating = take_subset(made, shots(number), spoken_for, "val")
        share = len(members) / len(order)
        assert len(subjects(validating)) == math.ceil(share * len(side(made, "val"))), "as large a share"
        for name, found in (("train", members), ("val", subjects(validating))):
            assert smaller[name] <= found <= side(made, name)
            smaller[name] = found


def test_more_shots_than_a_class_has_are_refused() -> None:
    made = split(people({0: 40, 1: 20}))
    assert take_subset(made, shots(14), BINARY)
    with pytest.raises(UserError, match=r"15 of each class of task 'ad' .* class 1 has 14 training"):
        take_subset(made, shots(15), BINARY, task="ad")
    with pytest.raises(UserError, match="class 1 has 0"):
        take_subset([row for row in made if row["y"] == 0], shots(1), BINARY)


def test_held_out_subjects() -> None:
    one, other = split(people({0: 20, 1: 20})), split(people({0: 20, 2: 20, 1: 20}), kind="multiclass")
    assert held_out_subjects([one, other]) == side(one, "test") | side(other, "test")


# -- files and checks ------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    for kind, rows in (("binary", people({0: 9, 1: 9})), ("regression", aged(12))):
        made, path = split(rows, kind=kind), tmp_path / f"{kind}.tsv"
        write_split(path, made)
        assert read_split(path) == made
        digest = split_digest(path)
        write_split(path, made)
        assert split_digest(path) == digest
        write_split(path, split(rows, seed=1, kind=kind))
        assert split_digest(path) != digest


def plant(made: list[dict], what: str) -> None:
    train = [row for row in made if row["side"] == "train"]
    if what == "two sides":
        train[0] |= {"side": "test", "order": None}
    elif what == "two ranks":
        train[0]["order"] = train[2]["order"]
    elif what == "has the rank":
        for row in made:
            row["order"] = 0 if row["side"] == "test" else row["order"]
    elif what == "not 0 to n - 1":
        last = max(row["order"] for row in train)
        for row in train:
            row["order"] += row["order"] == last
    elif what == "listed twice":
        made.append(dict(made[0]))
    elif what == "the sides are test, train":
        made[:] = [row for row in made if row["side"] != "val"]


@pytest.mark.parametrize(
    "what",
    ["two sides", "two ranks", "has the rank", "not 0 to n - 1", "listed twice", "the sides are test, train"],
)
def test_planted_faults_are_found(tmp_path: Path, what: str) -> None:
    made = split(people({0: 10, 1: 10}, scans=2))
    plant(made, what)
    with pytest.raises(UserError, match=rf"seed-0.tsv: .*{what}"):
        write_split(tmp_path / "seed-0.tsv", made)


def test_swapped_ranks_of_two_subjects_are_found(tmp_path: Path) -> None:
    made = split(people({0: 10, 1: 10}))
    write_split(tmp_path / "seed-0.tsv", made)
    text = (tmp_path / "seed-0.tsv").read_text()
    (tmp_path / "seed-0.tsv").write_text(text.replace("\ttrain\t3\t", "\ttrain\t4\t"))
    with pytest.raises(UserError, match="not 0 to n - 1"):
        read_split(tmp_path / "seed-0.tsv")
    (tmp_path / "seed-0.tsv").write_text(text.replace("\ttrain\t3\t", "\ttrain\tx\t"))
    with pytest.raises(UserError, match=r"seed-0.tsv, line \d+: .*not what a split holds"):
        read_split(tmp_path / "seed-0.tsv")
