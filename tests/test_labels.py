"""Labels: from the text of a cohort's tables to the target of a task."""

import re

import pytest

from neuropeft.cohorts.index import Scan
from neuropeft.cohorts.labels import left_out, task_rows
from neuropeft.config import BinaryTask, MultilabelTask, RegressionTask, Task
from neuropeft.errors import UserError
from neuropeft.tasks.values import comparable, finite

CLASSES = {"CN": ["CN", "control"], "AD": "AD"}


def scan(subject: str, session: str | None = None, **labels: str) -> Scan:
    scan_id = f"sub-{subject}_ses-{session}" if session else f"sub-{subject}"
    return Scan(scan_id, subject, session, f"{scan_id}_T1w.nii.gz", 1, 1, None, None, None, "x", labels, None)


def cohort(group: str = "CN CN CN AD AD AD", **labels: str) -> list[Scan]:
    """Scans of subjects a, b, ... with one value of each column for each of them."""
    columns = {"group": group.split()} | {column: text.split() for column, text in labels.items()}
    return [
        scan(subject, **{column: values[i] for column, values in columns.items()})
        for i, subject in enumerate("abcdefghij"[: len(columns["group"])])
    ]


def binary(**settings) -> Task:
    return BinaryTask(**{"kind": "binary", "target": "group", "classes": CLASSES, "train": "one"} | settings)


def regression(**settings) -> Task:
    return RegressionTask(**{"kind": "regression", "target": "age", "train": "one"} | settings)


def rows(task: Task, scans: list[Scan], name: str = "one") -> list[dict]:
    return task_rows("t", task, name, scans, "participants.tsv")


def refuse(message: str, task: Task, scans: list[Scan], name: str = "one") -> None:
    with pytest.raises(UserError, match=message) as caught:
        rows(task, scans, name)
    assert "\n" not in str(caught.value)


# -- what is kept ----------------------------------------------------------------------------------


def test_classes_become_indices_and_other_values_are_left_out(capsys) -> None:
    scans = cohort("CN control CN AD AD AD MCI n/a cn")
    found = rows(binary(), scans)
    without = {row["subject"]: row["reason"] for row in left_out(binary(), scans, found)}
    assert without == {"g": "group is MCI", "h": "group is n/a", "i": "group is cn"}
    assert [(row["subject"], row["y"]) for row in found] == [*zip("abcdef", [0, 0, 0, 1, 1, 1], strict=True)]
    assert (
        "2 scans of cohort one belong to none of its classes and are left out: group is 'MCI' (1 scans), 'cn'"
        in (capsys.readouterr().out)
    )


def test_order_is_by_subject_and_session() -> None:
    scans = [scan("a", session, age=age) for session, age in (("10", "63"), ("2", "61"), ("1", "60"))]
    scans += [scan("0", None, age="50"), scan("b", None, age="51")]
    assert [row["scan_id"] for row in rows(regression(), scans)] == [
        "sub-0",
        "sub-a_ses-1",
        "sub-a_ses-2",
        "sub-a_ses-10",
        "sub-b",
    ]


def test_age_and_sex() -> None:
    found = rows(binary(), cohort(sex="F f Female MALE m 2", age="60 61.5 n/a 90+ inf 7e1"))
    assert [row["sex"] for row in found] == ["F", "F", "F", "M", "M", None]
    assert [row["age"] for row in found] == [60, 61.5, None, None, None, 70]


def test_missing_regression_values_drop_the_scan() -> None:
    found = rows(regression(), cohort(age="60 n/a 61.5 NaN nan 62"))
    assert [row["y"] for row in found] == [60, 61.5, 62]
    assert all(isinstance(row["y"], float) for row in found), "a class index is int, a value float"


def test_filter() -> None:
    task = regression(where={"group": "CN", "scanner": [1, 2]})
    found = rows(
        task, cohort(age="60 61 62 63 64 65 66", group="CN CN AD CN CN CN CN", scanner="1.0 2 1 3 1 n/a 02")
    )
    assert [row["subject"] for row in found] == ["a", "b", "e", "g"]


def test_the_filter_holds_in_a_zero_shot_cohort_too() -> None:
    task = regression(where={"group": "CN"}, zero_shot=["two"])
    found = rows(task, cohort("CN AD CN AD", age="60 61 62 63"), "two")
    assert [row["subject"] for row in found] == ["a", "c"]


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (1, "1.0"), (0.5, ".50"), ("1", " 1 "), (1000, "1e3"), ("a", "a")]
)
def test_equal_values(one: object, other: object) -> None:
    assert comparable("group", one) == comparable("group", other)


@pytest.mark.parametrize(
    ("one", "other"), [(1, "2"), ("AD", "ad"), ("a", "ab"), ("1_0", "10"), ("F", "female")]
)
def test_different_values(one: object, other: object) -> None:
    assert comparable("group", one) != comparable("group", other)


def test_sexes_are_compared_by_meaning() -> None:
    assert comparable("sex", "F") == comparable("sex", "female")
    task = binary(target="sex", classes={"F": "F", "M": "M"})
    assert [row["y"] for row in rows(task, cohort(sex="f F female M m male"))] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("text", ["", "n/a", "nan", "inf", "-inf", "1e999", "1_0", "0x1", "1,5", "90+"])
def test_no_number(text: str) -> None:
    assert finite(text) is None


# -- what is refused -------------------------------------------------------------------------------


FEW, SCORE = cohort("CN CN CN AD AD"), regression(target="score")
REFUSED = {
    r"tasks\.t\.target`: .* no column 'Group' in cohort 'one' \(participants.tsv\): did you mean 'group'": (
        binary(target="Group"), cohort(),
    ),
    r"tasks\.t\.where\.site`: there is no column 'site' .*: choose from: group; or name it in .*\.site": (
        binary(where={"site": 1}), cohort(),
    ),
    r"no scan has a row .*participants.tsv.*zeros they lost": (binary(), [scan("a"), scan("b")]),
    r"tasks\.t\.where`: the filter leaves none of 6 scans.*'CN' \(3 scans\)": (
        binary(where={"group": "X"}), cohort(),
    ),
    r"tasks\.t\.classes\.AD`: no scan has group 'AD'.*'MCI' \(3 scans\)": (
        binary(), cohort("CN CN CN MCI MCI MCI"),
    ),
    r"in cohort 'two'.*remove two from `tasks\.t\.zero_shot`": (
        binary(zero_shot=["two"]), cohort("CN CN"), "two",
    ),
    r"classes\.AD`: only 2 subjects are AD.*a split needs 3 of each class": (binary(), FEW),
    r"only 2 subjects are AD": (binary(), [*FEW, scan("d", "2", group="AD")]),
    r"only 2 subjects have a value of 'age'.*a split needs 3": (regression(), cohort("- -", age="60 61")),
    r"classes\.AD`: the value '1.0' belongs to another class": (
        binary(classes={"CN": 1, "AD": "1.0"}), cohort(),
    ),
    r"'score' of scan sub-c is '90\+', which is not a number": (SCORE, cohort(score="0 1 90+ 2 x 3")),
    r"'score' of scan sub-b is 'inf'": (SCORE, cohort(score="0 inf 1 2 3 4")),
    r"tasks\.t\.target`: none of 6 scans has a value": (regression(), cohort(age="n/a n/a n/a n/a n/a n/a")),
    r"'age' is 60 for all 6 scans": (regression(), cohort(age="60 60 60.0 60 60 60")),
    r"remove two from `tasks\.t\.zero_shot`": (
        regression(zero_shot=["two"]), cohort(age="60 60 60 60 60 60"), "two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_a_target_is_refused(message: str) -> None:
    refuse(message, *REFUSED[message])


def test_a_zero_shot_cohort_of_both_classes_may_be_small() -> None:
    assert len(rows(binary(zero_shot=["two"]), cohort("CN AD"), "two")) == 2


@pytest.mark.parametrize("age", ["-9", "-0.1", "120.1", "999", "43831", "90+"])
def test_an_age_to_predict_is_one(age: str) -> None:
    assert [row["y"] for row in rows(regression(), cohort("- - -", age="0 60 120"))] == [0, 60, 120]
    message = rf"'age' of scan sub-b is '{re.escape(age)}', which is not an age of 0 to 120 years"
    refuse(message, regression(), cohort(age=f"0 {age} 120 62 63 64"))


@pytest.mark.parametrize(
    ("scores", "refused"),
    [
        ("0 -9 28 30", "-9, which looks like a missing value"),
        ("1 -4 28 30", "-4, which looks like a missing value"),
        ("0 999 100 30", "999, which looks like a missing value"),
        ("-2 9999 100 30", "9999, which looks like a missing value"),
        ("0 43831 28 30", "43831, which looks like a date of a spreadsheet"),
        ("-2 -9 28 30", None),
        ("0 -5 28 30", None),
        ("0 999 600 30", None),
        ("0 43831 600 30", None),
        ("0 43831.5 28 30", None),
    ],
)
def test_numbers_that_stand_for_something_else_are_refused(scores: str, refused: str | None) -> None:
    task = regression(target="score")
    if refused:
        refuse(rf"'score' of scan sub-b is {refused}", task, cohort("- - - -", score=scores))
    else:
        assert len(rows(task, cohort("- - - -", score=scores))) == 4


def test_a_column_of_dates_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for scores, told in (("43831 43900 44000", True), ("43831 43900 1000", False)):
        rows(regression(target="score", zero_shot=["two"]), cohort("- - -", score=scores), "two")
        assert ("looks like a date of a spreadsheet, for example 43831 of" in capsys.readouterr().out) == told


def test_labels_are_present_absent_or_unknown() -> None:
    task = MultilabelTask(kind="multilabel", labels={"oedema": "a", "mass": "b"}, train="one")
    scans = cohort(a="1 0 0 n/a 1 n/a", b="0 1 n/a 1 0 n/a")
    assert [row["y"] for row in rows(task, scans)] == ["1|0", "0|1", "0|n/a", "n/a|1", "1|0"]
    with pytest.raises(
        UserError, match=r"tasks\.t\.labels\.mass`: 'b' of scan .* is '2', which is neither 1 nor 0"
    ):
        rows(task, cohort(a="1 0 0 0 1 0", b="0 1 2 1 0 0"))
    unsure = cohort(a="1 0 -1 n/a -1.0 n/a", b="0 1 -1 1 0 n/a")
    for policy, expected in (
        ("ignore", ["1|0", "0|1", "n/a|1", "n/a|0"]),
        ("ones", ["1|0", "0|1", "1?|1?", "n/a|1", "1?|0"]),
        ({"oedema": "zeros"}, ["1|0", "0|1", "0?|n/a", "n/a|1", "0?|0"]),
    ):
        assert [row["y"] for row in rows(task.model_copy(update={"uncertain": policy}), unsure)] == expected
    absent = task.model_copy(update={"blank": "zeros"})
    assert [row["y"] for row in rows(absent, unsure)] == ["1|0", "0|1", "0|1", "n/a|0", "0|0"]
    with pytest.raises(UserError, match=r"tasks\.t\.labels\.oedema`: 'a' is not both 1 and 0"):
        rows(task.model_copy(update={"uncertain": "zeros"}), cohort(a="1 1 1 1 -1 n/a", b="0 1 0 0 1 0"))
    with pytest.raises(ValueError, match="`uncertain` names 'masss'"):
        MultilabelTask(
            kind="multilabel", labels={"a": "a", "b": "b"}, train="one", uncertain={"masss": "ones"}
        )
    with pytest.raises(UserError, match=r"tasks\.t\.labels\.oedema`: 'a' is not both 1 and 0"):
        rows(task, cohort(a="1 1 1 1 1 1", b="0 1 0 1 0 0"))
