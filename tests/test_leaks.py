"""Leaks between sides that names do not show: the same image under two names."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import zoom

from neuropeft.cli import main
from neuropeft.cohorts.leaks import check_leaks, check_pretraining
from neuropeft.cohorts.splits import make_split, read_split, write_split
from neuropeft.config.inputs import T1w
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs.t1w.kind import KIND
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.inputs.t1w.template import mni152_brain
from neuropeft.store import SIGNATURES, pool
from neuropeft.tasks import task_kind

COLUMNS = ("scan_id", "subject", "raw_sha1")
SAME = T1w.same


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class Case:
    """A task on cohort one (20 subjects), its zero-shot cohort zero and a third cohort, no image twice."""

    def __init__(self, folder: Path) -> None:
        self.stored = {
            name: folder / "cohorts" / name / "store/scans.tsv" for name in ("one", "zero", "more")
        }
        random = np.random.default_rng(0)
        for name, path in self.stored.items():
            subjects = [f"{name}{i}" for i in range(20 if name == "one" else 5)]
            scans = [{"scan_id": f"sub-{s}", "subject": s, "raw_sha1": f"hash of {s}"} for s in subjects]
            write_tsv(path, scans, COLUMNS)
            np.save(path.with_name(SIGNATURES), unit(random.standard_normal((len(scans), 50))))
        self.split, self.labels, self.out = (folder / name for name in ("seed-0.tsv", "zero.tsv", "out.tsv"))
        rows = [
            {**scan, "session": None, "y": i % 2, "sex": None} for i, scan in enumerate(self.scans("one"))
        ]
        write_split(self.split, make_split(rows, 0, 0.2, 0.1, task_kind("binary", 2), "t"))
        write_tsv(
            self.labels, self.scans("zero")[:4], ("scan_id", "subject")
        )  # the task leaves sub-zero4 out

    def scans(self, cohort: str) -> list[dict[str, str]]:
        return read_tsv(self.stored[cohort])

    def copy_image(self, scan: str, to: str, likeness: float = 0.0) -> None:
        """Give the scan `to` the voxels of `scan`, or what correlates with them by `likeness`."""
        at = {row["scan_id"]: (name, i) for name in self.stored for i, row in enumerate(self.scans(name))}
        (source, i), (name, j) = at[scan], at[to]
        path, rows = self.stored[name], self.scans(name)
        if not likeness:
            rows[j]["raw_sha1"] = self.scans(source)[i]["raw_sha1"]
            write_tsv(path, rows, COLUMNS)
            return
        signatures = np.load(path.with_name(SIGNATURES))
        one = np.load(self.stored[source].with_name(SIGNATURES))[i]
        rest = unit(signatures[j] - signatures[j] @ one * one)
        signatures[j] = likeness * one + (1 - likeness**2) ** 0.5 * rest
        np.save(path.with_name(SIGNATURES), signatures)

    def of_side(self, side: str) -> list[str]:
        return [row["scan_id"] for row in read_tsv(self.split) if row["side"] == side]

    def check(self, zero_shot: bool = False) -> None:
        other = (self.labels, self.stored["zero"]) if zero_shot else (None, None)
        check_leaks(self.split, self.stored["one"], *other, self.out, SAME)

    def check_pretraining(self, cohort: str, pretrained: str) -> None:
        tested = self.split if cohort == "one" else self.labels
        held_out = [self.split] if pretrained == "one" else []
        check_pretraining(tested, self.stored[cohort], self.stored[pretrained], held_out, self.out, SAME)


def verb(name: str, **options: object) -> int:
    """Call a verb as the workflow does; return its exit status."""
    return main([name, *(f"--{option.replace('_', '-')}={value}" for option, value in options.items())])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_scan_that_was_left_out_of_the_store_is_on_no_side(tmp_path: Path) -> None:
    people = [{"scan_id": f"sub-{i}", "subject": str(i), "y": i % 2} for i in range(13)]
    columns = ("scan_id", "subject", "session", "y", "sex")
    files = {name: tmp_path / f"{name}.tsv" for name in ("labels", "store-scans", "out")}
    write_tsv(files["labels"], [{"session": None, "sex": None} | person for person in people], columns)
    write_tsv(files["store-scans"], people[1:], COLUMNS)
    np.save(tmp_path / SIGNATURES, np.eye(12))
    options = {"task": "t", "kind": "binary", "size": 2, "seed": 1, "test": 0.3, "validation": 0.1} | files
    assert verb("split", **options) == 0
    kept = [{"session": None, "sex": None} | person for person in people[1:]]
    assert read_split(files["out"]) == make_split(kept, 1, 0.3, 0.1, task_kind("binary", 2), "t")
    assert read_split(files["out"]) != make_split(kept, 0, 0.3, 0.1, task_kind("binary", 2), "t")
    check_leaks(files["out"], files["store-scans"], None, None, tmp_path / "leaks.tsv", SAME)


def test_clean_task_is_reported(case: Case) -> None:
    case.check(zero_shot=True)
    sides = Counter(row["side"] for row in read_tsv(case.split))
    expected = {("one", side, str(sides[side])) for side in sides} | {("zero", "zero-shot", "4")}
    assert {(row["cohort"], row["side"], row["scans"]) for row in read_tsv(case.out)} == expected


@pytest.mark.parametrize("likeness", [0.0, SAME + 0.002], ids=["same voxels", "prepared elsewhere"])
@pytest.mark.parametrize("sides", [("train", "test"), ("val", "test"), ("train", "val")])
def test_one_image_under_two_subjects_on_two_sides(
    case: Case, sides: tuple[str, str], likeness: float
) -> None:
    one, other = (case.of_side(side)[-1] for side in sides)
    case.copy_image(one, to=other, likeness=likeness)
    with pytest.raises(
        UserError, match=r"seed-0.tsv: sub-one.* hold the same image; give both the same"
    ) as told:
        case.check()
    for scan, side in zip((one, other), sides, strict=True):
        assert re.search(rf"{scan} of (cohort )?one \({side}\)", str(told.value))
    assert not case.out.exists()


def test_one_image_twice_on_one_side_is_no_leak(case: Case) -> None:
    case.copy_image(case.of_side("train")[0], to=case.of_side("train")[1])
    case.check()
    assert case.out.exists()


def test_a_signature_is_of_one_scan_though_all_brains_look_like_the_template() -> None:
    random = np.random.default_rng(0)
    brain = to_model_grid(np.asarray(mni152_brain().dataobj), 20)
    one, other = (brain + 0.1 * zoom(random.standard_normal((5, 5, 5)), 4, order=1) for _ in range(2))
    again = one + 0.01 * random.standard_normal(one.shape)
    assert np.corrcoef(pool(one), pool(other))[0, 1] > SAME
    assert KIND.signature(one[None]) @ KIND.signature(other[None]) < 0.5
    assert KIND.signature(one[None]) @ KIND.signature(2 * again[None] + 1) > 0.99


def test_two_people_look_alike(case: Case) -> None:
    case.copy_image(case.of_side("train")[0], to=case.of_side("test")[0], likeness=SAME - 0.01)
    case.check()


def test_scans_whose_voxels_are_not_known_are_not_the_same(case: Case) -> None:
    write_tsv(case.stored["one"], [row | {"raw_sha1": None} for row in case.scans("one")], COLUMNS)
    case.check()


def test_image_of_a_zero_shot_cohort(case: Case) -> None:
    scan = case.of_side("train")[0]
    case.copy_image(scan, to="sub-zero4")
    case.check(zero_shot=True)  # the task does not test on it
    case.copy_image(scan, to="sub-zero3")
    case.check()
    with pytest.raises(
        UserError, match=rf"{scan} of .* \(train\) and sub-zero3 of zero \(zero-shot\).*one of the"
    ):
        case.check(zero_shot=True)
    files = {"split": case.split, "stored": case.stored["one"], "out": case.out, "same": SAME}
    assert verb("check-leaks", **files) == 0
    assert verb("check-leaks", **files, labels=case.labels, zero_shot=case.stored["zero"]) == 1


def test_subject_on_two_sides(case: Case) -> None:
    lines = case.split.read_text().splitlines()
    tested = next(line for line in lines if "\ttest\t" in line).split("\t")
    changed = [line.replace("sub-one0\tone0\t", f"sub-one0\t{tested[1]}\t") for line in lines]
    assert changed != lines
    case.split.write_text("\n".join(changed) + "\n")
    with pytest.raises(UserError, match=r"seed-0.tsv: "):
        case.check()


@pytest.mark.parametrize("cohort", ["one", "zero"])
def test_tested_image_in_the_cohort_that_is_pretrained_on(case: Case, cohort: str) -> None:
    case.copy_image(case.of_side("train")[0], to="sub-more1")  # what is trained on may be pretrained on
    case.check_pretraining(cohort, "more")
    scan = case.of_side("test")[0] if cohort == "one" else "sub-zero2"
    case.copy_image(scan, to="sub-more0")
    with pytest.raises(UserError, match=rf"{scan} of .* and sub-more0 of more \(pretraining\) hold the same"):
        case.check_pretraining(cohort, "more")


def test_pretraining_on_the_cohort_itself_leaves_tested_subjects_out(case: Case) -> None:
    case.check_pretraining("one", "one")
    tested, trained = case.of_side("test")[0], case.of_side("train")[0]
    case.copy_image(tested, to=trained)
    with pytest.raises(UserError, match=rf"{tested} of .* and {trained} of one \(pretraining\)"):
        case.check_pretraining("one", "one")


def test_zero_shot_image_in_the_training_cohort_that_is_pretrained_on(case: Case) -> None:
    case.copy_image(case.of_side("test")[0], to="sub-zero1")
    case.check_pretraining("zero", "one")  # pretraining has left that one out
    case.copy_image(case.of_side("train")[0], to="sub-zero1")
    with pytest.raises(
        UserError, match=r"sub-zero1 of cohort zero \(zero-shot\) and .* of one \(pretraining\)"
    ):
        case.check_pretraining("zero", "one")
