"""Cohorts that are tables of paths: what a row says, and what is refused."""

from pathlib import Path

import pytest

from neuropeft.cohorts.index import index_cohort
from neuropeft.config import Cohort
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from test_index import table, touch


def test_a_path_keeps_its_spaces(tmp_path: Path) -> None:
    scan = tmp_path / "My  Scans" / "a.nii"
    rows = [{"path": str(scan)}]
    write_tsv(tmp_path / "t.tsv", rows, ["path"])
    assert read_tsv(tmp_path / "t.tsv") == rows


def test_a_path_may_hold_variables(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SCANS_UNDER_TEST", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.nii").touch()
    table(tmp_path / "scans.tsv", "path subject", "$SCANS_UNDER_TEST/a.nii 1", "~/b.nii 2")
    scans = index_cohort("T", Cohort(table=str(tmp_path / "scans.tsv")), 2)
    assert [scan.path for scan in scans] == [str(tmp_path / "elsewhere/a.nii"), str(tmp_path / "b.nii")]


def test_a_cohort_none_of_whose_scans_is_there_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "scans.tsv", "path subject", "gone/a.nii 1", "gone/b.nii 2")
    with pytest.raises(UserError, match=r"no scan that may be read: of its 2 .*gone/a\.nii; fix"):
        index_cohort("T", Cohort(table=str(tmp_path / "scans.tsv")), 2)


def test_blanks_after_commas_count_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "scans.csv").write_text("path, subject, sex\na.nii, 1, F\n")
    (scan,) = index_cohort("T", Cohort(table=str(tmp_path / "scans.csv")), 2)
    assert (scan.subject, scan.labels["sex"]) == ("1", "F")


def test_a_table_parted_by_semicolons_is_told(tmp_path: Path) -> None:
    (tmp_path / "scans.csv").write_text("path;subject\na.nii;1\n")
    with pytest.raises(UserError, match=r"scans.csv: its columns are parted by ';', not by ','"):
        index_cohort("T", Cohort(table=str(tmp_path / "scans.csv")), 2)


def test_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    table(
        tmp_path / "scans.csv",
        "file,subject,session,dx",
        f"{tmp_path}/a.nii.gz,002_S_1,ses-m12,CN",
        "b.nii.gz,sub-002_S_1,m12,AD",
        "c.nii.gz,7,n/a,",
    )
    cohort = Cohort(table=str(tmp_path / "scans.csv"), columns={"path": "file", "group": "dx"})
    scans = {scan.scan_id: scan for scan in index_cohort("T", cohort, 2)}
    assert set(scans) == {"sub-002S1_ses-m12", "sub-002S1_ses-m12_run-2", "sub-7"}
    assert {scan.subject for scan in scans.values()} == {"002S1", "7"}
    assert scans["sub-002S1_ses-m12_run-2"].path == str(tmp_path / "b.nii.gz")
    assert scans["sub-002S1_ses-m12_run-2"].labels["group"] == "AD"
    assert scans["sub-7"].session is None
    assert scans["sub-7"].size == -1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path age", "a 1"], r"line 2: a scan needs a `subject`.*cohorts\.T\.columns\.subject"),
        (["path subject", "n/a 1"], r"line 2: a scan needs a `path`"),
        (["path subject", "a 1", "./a 2"], r"line 3: the scan .*a is already on line 2"),
        (["path subject", "a 1_2", "b 12"], r"line 3: subjects '1_2' and '12' differ only in"),
        (["path subject", "a S1", "b s1"], r"line 3: subjects 'S1' and 's1' differ only in case"),
        (["path subject age age", "a 1 60 61"], r"scans\.tsv has two columns 'age'; rename or remove one"),
        (["path subject age", "a 1 60", "b 2"], r"line 3: 2 cells under a header of 3 columns"),
        (["path subject", "a 1 60"], r"line 2: 3 cells under a header of 2 columns"),
        (["path subject", "a ??"], r"line 2: '\?\?' has no letter or digit"),
        (["path subject"], r"has no rows"),
    ],
)
def test_table_mistakes(tmp_path: Path, lines: list[str], message: str) -> None:
    table(tmp_path / "scans.tsv", *lines)
    with pytest.raises(UserError, match=message):
        index_cohort("T", Cohort(table=str(tmp_path / "scans.tsv")), 2)


def test_table_renames_only_columns_that_exist(tmp_path: Path) -> None:
    table(tmp_path / "scans.tsv", "path subject sex", "a 1 F")
    with pytest.raises(UserError, match=r"cohorts\.T\.columns\.sex` names the column 'gender'"):
        index_cohort("T", Cohort(table=str(tmp_path / "scans.tsv"), columns={"sex": "gender"}), 2)
