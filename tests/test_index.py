"""The scan index: BIDS roots, simulated cohorts, and what prepare writes."""

import errno
import os
from pathlib import Path

import pytest

from neuropeft.cohorts.index import index_cohort, write_index
from neuropeft.config import Cohort
from neuropeft.errors import UserError
from neuropeft.files import read_tsv


def touch(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())


def table(path: Path, *lines: str, delimiter: str = "\t") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line.replace(" ", delimiter) for line in lines) + "\n")


def index(root: Path, **settings) -> dict:
    scans = index_cohort("C", Cohort(bids=str(root), **settings), scans_per_job=2)
    assert [scan.scan_id for scan in scans] == sorted(scan.scan_id for scan in scans)
    return {scan.scan_id: scan for scan in scans}


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    root = tmp_path / "bids"
    touch(
        root,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_part-phase_T1w.nii.gz",
        "sub-01/anat/._sub-01_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.mgz",
        "sub-02/ses-b/func/sub-02_ses-b_T1w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "derivatives/sub-01/anat/sub-01_T1w.nii.gz",
    )
    table(root / "participants.tsv", "participant_id age DX", "sub-01 60 CN", "02 70 CN", "sub-09 50 AD")
    table(root / "sub-02/sub-02_sessions.tsv", "session_id age DX", "ses-b 72 AD")
    return root


# -- BIDS ------------------------------------------------------------------------------------------


def test_every_t1w_is_a_scan(bids: Path) -> None:
    scans = index(bids)
    assert list(scans) == ["sub-01", "sub-02_ses-a_run-1", "sub-02_ses-a_run-2", "sub-02_ses-b", "sub-03"]
    one, other = scans["sub-01"], scans["sub-02_ses-b"]
    assert (one.subject, one.session, one.mask) == ("01", None, None)
    assert (other.subject, other.session) == ("02", "b")
    assert other.path == str(bids / "sub-02/ses-b/anat/sub-02_ses-b_T1w.mgz")
    state = Path(one.path).stat()
    assert (one.size, one.mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_session_values_override_subject_values(bids: Path) -> None:
    scans = index(bids, columns={"diagnosis": "DX"})
    assert scans["sub-02_ses-b"].labels["age"] == "72"
    assert scans["sub-02_ses-b"].labels["diagnosis"] == "AD"
    assert scans["sub-03"].labels == {}


def test_a_session_without_a_row_takes_nothing_that_changes_between_sessions(bids: Path, capsys) -> None:
    scans = index(bids)
    assert scans["sub-02_ses-a_run-1"].labels == {
        "participant_id": "02", "session_id": "n/a", "age": "n/a", "DX": "n/a",
    }  # fmt: skip
    assert "1 sessions have no row in the sessions.tsv of their subject, for example sub-02/ses-a" in (
        capsys.readouterr().out
    )
    table(bids / "sub-02/sub-02_sessions.tsv", "session_id age DX")
    index(bids)
    told = capsys.readouterr().out
    assert "2 sessions have no row" in told
    assert "several sessions" not in told
    (bids / "sub-02/sub-02_sessions.tsv").unlink()
    assert index(bids)["sub-02_ses-a_run-1"].labels["age"] == "70"
    assert "1 subjects have several sessions but no sessions.tsv, for example sub-02;" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("subject", ['"a"', '"', "$HOME", "a b", "é'"])
def test_any_name_of_a_subject_and_its_folder_comes_back_from_the_index(tmp_path: Path, subject: str) -> None:
    root = tmp_path / f"{subject} scans"
    touch(root, f"sub-{subject}/anat/sub-{subject}_T1w.nii")
    write_index(tmp_path / "scans.tsv", list(index(root).values()))
    (row,) = read_tsv(tmp_path / "scans.tsv")
    path = root / f"sub-{subject}/anat/sub-{subject}_T1w.nii"
    assert (row["subject"], row["scan_id"], row["path"]) == (subject, f"sub-{subject}", str(path))


@pytest.mark.parametrize(
    ("subject", "message"),
    [("A1", r"the folders 'sub-A1' and 'sub-a1' differ only in case"), ("\udce9", r"\\udce9.* is not UTF-8")],
)
def test_names_that_cannot_be_kept_apart_or_written_are_refused(bids: Path, subject, message: str) -> None:
    touch(bids, "sub-a1/anat/sub-a1_T1w.nii")
    (bids / f"sub-{subject}/anat").mkdir(parents=True)
    (bids / f"sub-{subject}/anat/sub-{subject}_T1w.nii").touch()
    with pytest.raises(UserError, match=message):
        index(bids)


def test_subjects_without_scan_are_told(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index(bids)
    assert (
        "1 of 3 subjects in participants.tsv have no T1w scan, for example sub-09" in capsys.readouterr().out
    )


def test_scanned_subjects_without_a_row_are_told(bids: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index(bids)
    assert "no row for 1 subjects with a T1w scan, for example sub-03" in capsys.readouterr().out


def test_an_open_quotation_mark_is_told_and_blank_last_rows_are_not(bids: Path) -> None:
    participants = bids / "participants.tsv"
    participants.write_text(participants.read_text().replace("CN\n", "CN\t\t\n") + "\t\t\n\t\t\t\n")
    assert index(bids)["sub-01"].labels["age"] == "60"
    participants.write_text(participants.read_text().replace("60", '"60'))
    with pytest.raises(UserError, match=r"cannot read the table .*participants\.tsv"):
        index(bids)


def test_labels_are_optional(bids: Path) -> None:
    (bids / "participants.tsv").unlink()
    assert index(bids)["sub-01"].labels == {}


def test_missing_file_keeps_its_row(bids: Path) -> None:
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").unlink()
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").symlink_to("not-fetched")
    scan = index(bids)["sub-03"]
    assert (scan.size, scan.mtime_ns, scan.file) == (-1, 0, None)
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").unlink()
    (bids / "sub-03/anat/sub-03_T1w.nii.gz").mkdir()
    assert index(bids)["sub-03"].size == -1, "a folder is no scan"


@pytest.mark.parametrize(("code", "stops"), [("EIO", True), ("ESTALE", True), ("EACCES", False)])
def test_a_disk_that_fails_leaves_no_scan_out(bids: Path, monkeypatch, code: str, stops: bool) -> None:
    def stat(path: str, **_) -> os.stat_result:
        if str(path).endswith("sub-03_T1w.nii.gz"):
            raise OSError(getattr(errno, code), "it failed")
        return os.lstat(path)

    monkeypatch.setattr("neuropeft.cohorts.index.os.stat", stat)
    if stops:
        with pytest.raises(UserError, match=r"sub-03_T1w.nii.gz: it failed .* mounted and run again"):
            index(bids)
    else:
        assert index(bids)["sub-03"].size == -1


def test_mask_template(bids: Path, monkeypatch) -> None:
    monkeypatch.setenv("MASKS_UNDER_TEST", "masks")
    given = {"skull_strip": "given", "brain_masks": "$MASKS_UNDER_TEST/{subject}/{session}/{scan_id}.nii.gz"}
    with pytest.raises(UserError, match=r"no brain mask: .*masks/01/sub-01\.nii\.gz; fix `cohorts\.C"):
        index(bids, **given)
    touch(bids, "masks/01/sub-01.nii.gz")
    scans = index(bids, **given)
    assert scans["sub-01"].mask == str(bids / "masks/01/sub-01.nii.gz")
    assert scans["sub-01"].mask_size > 0
    assert scans["sub-02_ses-b"].mask == str(bids / "masks/02/b/sub-02_ses-b.nii.gz")
    assert scans["sub-02_ses-b"].mask_size == -1
    with pytest.raises(UserError, match=r"cohorts\.C\.brain_masks.*\{subject\}, \{session\} and \{scan_id\}"):
        index(bids, skull_strip="given", brain_masks="masks/{sub}.nii.gz")


def test_renamed_column_must_exist(bids: Path) -> None:
    with pytest.raises(
        UserError, match=r"cohorts\.C\.columns\.sex` names the column 'Dx'.*did you mean 'DX'"
    ):
        index(bids, columns={"sex": "Dx"})


def test_duplicate_participant(bids: Path) -> None:
    table(bids / "participants.tsv", "participant_id age", "sub-01 60", "01 61")
    with pytest.raises(UserError, match=r"participants\.tsv, line 3: 01 has a second row"):
        index(bids)


def test_two_files_of_one_scan(bids: Path) -> None:
    touch(bids, "sub-01/anat/sub-01_T1w.nii")
    with pytest.raises(UserError, match=r"two scans sub-01, .*keep one"):
        index(bids)


def test_no_scan_at_all(tmp_path: Path) -> None:
    table(tmp_path / "participants.tsv", "participant_id", "sub-01")
    with pytest.raises(UserError, match=r"cohort 'C' has no scan: nothing matches .*_T1w"):
        index(tmp_path)


def test_index_follows_the_files(bids: Path, tmp_path: Path) -> None:
    path = tmp_path / "scans.tsv"
    assert write_index(path, list(index(bids).values()))
    assert not write_index(path, list(index(bids).values()))
    (bids / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"another scan")
    assert write_index(path, list(index(bids).values()))


def test_a_scan_that_may_be_read_again_is_a_changed_one(bids: Path, monkeypatch) -> None:
    before = index(bids)["sub-01"]
    monkeypatch.setattr(os, "access", lambda path, mode: "sub-01" not in path)  # root may read everything
    locked = index(bids)["sub-01"]
    assert (locked.size, locked.file) == (-1, before.file)
