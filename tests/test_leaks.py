"""Leaks between sides that names do not show: the same image under two names."""

from pathlib import Path

import numpy as np
import pytest

from neuropeft.cohorts.leaks import check_leaks, find_leaks, find_shared, store_digests
from neuropeft.cohorts.splits import make_split, write_split
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv


def store(results: Path, cohort: str, subjects: int) -> Path:
    """Pack random volumes [subjects, 4, 4, 4], one scan each."""
    folder = results / "cohorts" / cohort / "store"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(len(cohort))
    np.save(folder / "volumes.npy", generator.standard_normal((subjects, 4, 4, 4)).astype(np.float16))
    write_tsv(folder / "scans.tsv", [{"scan_id": f"sub-{cohort}{i}"} for i in range(subjects)], ["scan_id"])
    return folder / "volumes.npy"


@pytest.fixture
def case(tmp_path: Path) -> dict:
    """A task with two seeds, its training cohort and a zero-shot cohort."""
    rows = [
        {"scan_id": f"sub-one{i}", "subject": f"one{i}", "session": None, "y": i % 2, "sex": None}
        for i in range(20)
    ]
    files = [tmp_path / f"seed-{seed}.tsv" for seed in range(2)]
    splits = [make_split(rows, seed, 0.2, 0.1, "binary", "t") for seed in range(2)]
    for file, made in zip(files, splits, strict=True):
        write_split(file, made)
    zero_shot = store(tmp_path, "zero", 5)
    return {
        "files": files,
        "split": splits[0],
        "store": store(tmp_path, "one", 20),
        "zero_shot": [zero_shot, zero_shot.with_name("scans.tsv")],
        "out": tmp_path / "leaks.tsv",
    }


def check(case: dict) -> None:
    check_leaks(case["files"], case["store"], case["zero_shot"], case["out"])


def copy_image(source: Path, i: int, target: Path, j: int) -> None:
    volumes = np.load(target)
    volumes[j] = np.load(source)[i]
    np.save(target, volumes)


def numbers(case: dict, *sides: str) -> list[int]:
    """Return the number of one scan on each of `sides`, no scan twice."""
    free = [(row["side"], int(row["scan_id"].removeprefix("sub-one"))) for row in case["split"]]
    found = []
    for side in sides:
        member = next(entry for entry in free if entry[0] == side)
        free.remove(member)
        found.append(member[1])
    return found


def test_clean_task_is_reported(case: dict) -> None:
    check(case)
    report = read_tsv(case["out"])
    assert [(row["compared_with"], row["scans"], row["identical"]) for row in report] == [
        ("itself", "20", "0"),
        ("zero", "20", "0"),
    ] * 2
    assert len({row["sha256"] for row in report}) == 2


@pytest.mark.parametrize("sides", [("train", "test"), ("val", "test"), ("train", "val")])
def test_one_image_under_two_subjects_on_two_sides(case: dict, sides: tuple[str, str]) -> None:
    i, j = numbers(case, *sides)
    copy_image(case["store"], i, case["store"], j)
    with pytest.raises(
        UserError, match=r"seed-0.tsv: sub-one\d+ \(\w+\) and .* same image; give both the same"
    ):
        check(case)
    leak = find_leaks(case["split"], store_digests(case["store"].parent))[0]
    assert {leak.one, leak.other} == {f"sub-one{i}", f"sub-one{j}"}
    assert {leak.one_side, leak.other_side} == set(sides)
    assert not case["out"].exists()


def test_one_image_twice_on_one_side_is_no_leak(case: dict) -> None:
    i, j = numbers(case, "train", "train")
    copy_image(case["store"], i, case["store"], j)
    assert find_leaks(case["split"], store_digests(case["store"].parent)) == []


def test_image_of_a_zero_shot_cohort(case: dict) -> None:
    (i,) = numbers(case, "train")
    copy_image(case["store"], i, case["zero_shot"][0], 3)
    digests = store_digests(case["store"].parent)
    (leak,) = find_shared(case["split"], digests, store_digests(case["zero_shot"][0].parent))
    assert leak == (f"sub-one{i}", "train", "sub-zero3", "zero-shot")
    with pytest.raises(
        UserError, match=rf"sub-one{i} \(train\) and sub-zero3 \(zero-shot\) hold .*being zero"
    ):
        check(case)


def test_subject_on_two_sides(case: dict) -> None:
    file = case["files"][1]
    lines = file.read_text().splitlines()
    tested = next(line for line in lines if "\ttest\t" in line).split("\t")
    changed = [line.replace("sub-one0\tone0\t", f"sub-one0\t{tested[1]}\t") for line in lines]
    assert changed != lines
    file.write_text("\n".join(changed) + "\n")
    with pytest.raises(UserError, match=r"seed-1.tsv: "):
        check(case)
