"""The steps over chunks, from an index to the store and the QC page: one bad scan is a row, not the end."""

import errno
import hashlib
import re

import nibabel as nib
import numpy as np
import pytest

from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.preprocess import steps
from neuropeft.preprocess.ninedof import load_itk
from neuropeft.preprocess.qc import outlier_scores, write_qc
from neuropeft.preprocess.store import list_excluded, pack
from neuropeft.preprocess.template import AFFINE
from neuropeft.store import open_store
from preprocess_scans import MOVED, STILL, brain_scan, distance_mm, save

INDEX_COLUMNS = ("scan_id", "subject", "session", "path", "mask", "size", "mtime_ns", "chunk")
BAD = ("truncated", "zero", "flat", "series", "holes", "missing")


def row(subject, path, session="n/a", chunk="x0"):
    scan_id = f"sub-{subject}" + ("" if session == "n/a" else f"_ses-{session}")
    state = {"size": 1, "mtime_ns": 1, "mask": "n/a", "chunk": chunk}
    return {"scan_id": scan_id, "subject": subject, "session": session, "path": path, **state}


def write_scans(folder):
    """Write two good scans and one of every bad kind; return their index rows, not sorted."""
    good = brain_scan(MOVED, (3.0, 3.0, 3.0), "PSR")
    other = brain_scan(STILL, (3.0, 3.0, 3.0))
    data, affine = np.asarray(other.dataobj), other.affine
    rows = [row("good", save(folder / "good.nii.gz", good), session="2")]
    nib.MGHImage(data, affine).to_filename(folder / "also.mgz")
    rows.append(row("also", folder / "also.mgz", chunk="x1"))
    whole = save(folder / "truncated.nii.gz", other).read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(folder / "zero.nii.gz", nib.Nifti1Image(0 * data, affine))
    save(folder / "flat.nii.gz", nib.Nifti1Image(data[:, :, 30], affine))
    save(folder / "series.nii.gz", nib.Nifti1Image(np.stack([data, data], -1), affine))
    save(folder / "holes.nii.gz", nib.Nifti1Image(np.where(data > 900, np.nan, data), affine))
    return rows + [row(kind, folder / f"{kind}.nii.gz") for kind in BAD]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return the folder of a cohort whose two chunks went through all four steps."""
    root = tmp_path_factory.mktemp("cohort")
    write_tsv(root / "scans.tsv", write_scans(root / "raw"), INDEX_COLUMNS)
    for chunk in ("x0", "x1"):
        run_chunk(root, chunk)
    return root


def run_chunk(root, chunk):
    folder = root / "chunks" / chunk
    steps.run_n4(root / "scans.tsv", chunk, folder / "n4", folder / "n4.tsv")
    steps.run_skull_strip(
        folder / "n4.tsv", folder / "n4", "stripped", root / "derivatives", folder / "skull_strip.tsv"
    )
    steps.run_register(
        folder / "skull_strip.tsv", folder / "n4", root / "derivatives", folder / "register.tsv"
    )
    steps.run_resample(folder / "register.tsv", folder / "n4", root / "derivatives", folder / "resample.tsv")


def tables(root):
    return [root / "chunks" / chunk / "resample.tsv" for chunk in ("x1", "x0")]


def test_bad_scans_become_rows_with_their_reasons(cohort):
    list_excluded(tables(cohort), cohort / "excluded.tsv")
    reasons = {excluded["subject"]: excluded for excluded in read_tsv(cohort / "excluded.tsv")}
    assert set(reasons) == set(BAD)
    assert {excluded["step"] for excluded in reasons.values()} == {"n4"}
    expected = dict(zip(BAD, ("truncated", "all zero", "2D", "4D", "NaN", "missing"), strict=True))
    for kind, words in expected.items():
        assert words in reasons[kind]["reason"]
        assert reasons[kind]["path"].endswith(f"{kind}.nii.gz")


def test_every_step_carries_all_scans_of_its_chunk_forward(cohort):
    failed = [row for row in read_tsv(cohort / "chunks/x0/n4.tsv") if row["status"] == "failed"]
    for step in ("n4", "skull_strip", "register", "resample"):
        rows = read_tsv(cohort / "chunks" / "x0" / f"{step}.tsv")
        assert {row["subject"] for row in rows} == {"good", *BAD}
        assert [row["subject"] for row in rows if row["status"] == "ok"] == ["good"]
        kept = [{column: row[column] for column in steps.SCAN_COLUMNS} for row in rows]
        assert all(row in kept for row in failed), "with the step and the reason of their failure"
        assert tuple(rows[0]) == getattr(steps, f"{step.upper()}_COLUMNS", steps.SCAN_COLUMNS)


def test_derivatives_are_where_bids_wants_them(cohort):
    anat = cohort / "derivatives" / "sub-good" / "ses-2" / "anat"
    assert sorted(path.name for path in anat.iterdir()) == [
        "sub-good_ses-2_desc-brain_mask.nii.gz",
        "sub-good_ses-2_from-T1w_to-MNI152_mode-image_xfm.txt",
        "sub-good_ses-2_space-MNI152_desc-preproc_T1w.nii.gz",
    ]
    assert (cohort / "derivatives" / "dataset_description.json").is_file()
    assert (cohort / "derivatives" / "sub-also" / "anat").is_dir()
    preproc = nib.load(anat / "sub-good_ses-2_space-MNI152_desc-preproc_T1w.nii.gz")
    assert preproc.shape == (91, 109, 91)
    np.testing.assert_array_equal(preproc.affine, AFFINE)
    assert (np.asarray(preproc.dataobj)[:, :, -4:] == 0).all()
    transform = load_itk(anat / "sub-good_ses-2_from-T1w_to-MNI152_mode-image_xfm.txt")
    assert distance_mm(transform, MOVED) < 1.0


def test_the_store_holds_the_good_scans_in_order(cohort):
    list_excluded(tables(cohort), cohort / "excluded.tsv")
    store_dir = cohort / "store"
    pack(
        tables(cohort),
        cohort / "excluded.tsv",
        store_dir / "volumes.npy",
        store_dir / "scans.tsv",
        max_excluded_share=0.9,
        size=40,
    )
    store = open_store(store_dir)
    assert store.scan_ids == ["sub-also", "sub-good_ses-2"]
    assert store.volumes.shape == (2, 40, 40, 40)
    assert store.volumes.dtype == np.float16
    assert isinstance(store.volumes, np.memmap)
    assert store.index_of("sub-good_ses-2") == 1
    assert [row["row"] for row in store.rows] == ["0", "1"]
    hashes = [hashlib.sha1(volume.tobytes()).hexdigest() for volume in store.volumes]
    assert [row["sha1"] for row in store.rows] == hashes
    assert float(store.rows[1]["template_correlation"]) > 0.85
    for volume in store.volumes:
        assert volume.astype(np.float32).mean() == pytest.approx(0, abs=1e-3)
        assert volume.astype(np.float32).std() == pytest.approx(1, abs=1e-3)
    both = np.corrcoef(store.volumes.reshape(2, -1).astype(np.float32))
    assert both[0, 1] > 0.9  # two poses of one brain
    with pytest.raises(UserError, match=r"sub-zero.*excluded\.tsv"):
        store.index_of("sub-zero")


def pack_into(cohort, folder, share=0.9):
    pack(
        tables(cohort),
        cohort / "excluded.tsv",
        folder / "volumes.npy",
        folder / "scans.tsv",
        max_excluded_share=share,
        size=40,
    )


def test_too_many_bad_scans_stop_the_run_with_the_list(cohort, tmp_path):
    with pytest.raises(UserError, match=r"6 of 8 .*6 at n4.*excluded\.tsv"):
        pack_into(cohort, tmp_path, share=0.5)
    assert not list(tmp_path.iterdir())
    pack_into(cohort, tmp_path, share=0.75)  # the share itself is allowed


def test_a_full_disk_is_noticed_before_packing(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="free some space"):
        pack_into(cohort, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vanished_derivative_is_named(cohort, tmp_path):
    rows = [row | {"preproc": str(tmp_path / "gone.nii.gz")} for row in read_tsv(tables(cohort)[0])]
    write_tsv(tmp_path / "resample.tsv", rows, steps.RESAMPLE_COLUMNS)
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        pack(
            [tmp_path / "resample.tsv"],
            cohort / "excluded.tsv",
            tmp_path / "volumes.npy",
            tmp_path / "scans.tsv",
            max_excluded_share=0,
        )
    assert not (tmp_path / "volumes.npy").exists()


def test_a_store_whose_files_disagree_is_refused(tmp_path):
    np.save(tmp_path / "volumes.npy", np.zeros((3, 4, 4, 4), np.float16))
    write_tsv(tmp_path / "scans.tsv", [{"scan_id": "sub-1"}], ("scan_id",))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path)


# -- what is a scan's fault and what is not --------------------------------------------------------


def one_step(tmp_path, error, capsys=None):
    def work(row):
        raise error

    rows = [
        {"scan_id": "sub-1", "status": "ok", "step": "n/a", "reason": "n/a"},
        {"scan_id": "sub-2", "status": "failed", "step": "n4", "reason": "bad"},
    ]
    steps._run("register", rows, work, tmp_path / "out.tsv", ("scan_id", "status", "step", "reason"))
    return read_tsv(tmp_path / "out.tsv")


def test_any_error_of_a_scan_is_its_reason_and_the_log_has_the_rest(tmp_path, capsys):
    done = one_step(tmp_path, ZeroDivisionError("first line\nsecond line"))
    assert done[0] == {
        "scan_id": "sub-1",
        "status": "failed",
        "step": "register",
        "reason": "ZeroDivisionError: first line",
    }
    assert done[1]["step"] == "n4"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.nii"), "free space"),
        (MemoryError(), "mem_mb"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "mem_mb"),
        (ModuleNotFoundError("No module named 'ants'"), "install"),
        (UserError("install hd-bet"), "install hd-bet"),
    ],
)
def test_what_is_no_scans_fault_stops_the_job(tmp_path, error, words):
    with pytest.raises(UserError, match=words):
        one_step(tmp_path, error)
    assert not (tmp_path / "out.tsv").exists()


def test_an_interrupt_stops_the_job(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        one_step(tmp_path, KeyboardInterrupt())


def test_an_unknown_chunk_is_a_users_error(cohort, tmp_path):
    with pytest.raises(UserError, match="x9"):
        steps.run_n4(cohort / "scans.tsv", "x9", tmp_path / "n4", tmp_path / "n4.tsv")


# -- QC --------------------------------------------------------------------------------------------


def test_outliers_are_those_far_from_the_cohorts_median():
    rng = np.random.default_rng(0)
    numbers = {
        "mask_ml": [*rng.normal(1500, 80, 30), 2100],
        "template_correlation": [*rng.normal(0.6, 0.01, 29), 0.45, 0.75],
        "rotation_deg": [*rng.normal(8, 3, 30), 60],
        "shear": [1e-17 * index for index in range(31)],
    }
    scores = outlier_scores(numbers)
    assert {name: list(np.nonzero(score > 3.5)[0]) for name, score in scores.items()} == {
        "mask_ml": [30],
        "template_correlation": [29],  # a good fit is no outlier
        "rotation_deg": [30],
        "shear": [],
    }
    assert scores["rotation_deg"][30] == np.inf


def test_a_small_cohort_has_only_implausible_numbers():
    scores = outlier_scores({"mask_ml": [1500, 1501, 1502, 1900], "scale_x": [0.9, 0.9, 0.91, 1.5]})
    assert list(scores["mask_ml"]) == [0, 0, 0, 0]
    assert list(scores["scale_x"]) == [0, 0, 0, np.inf]


def test_the_qc_page_stands_alone_and_shows_flagged_and_failed_scans(cohort, tmp_path):
    rows = read_tsv(tables(cohort)[1])
    good = next(row for row in rows if row["status"] == "ok")
    bad = next(row for row in rows if row["subject"] == "zero")
    many = [good | {"scan_id": f"sub-{index:02}", "mask_ml": str(1400 + index)} for index in range(14)]
    many[3] |= {"mask_ml": "2900"}
    write_tsv(tmp_path / "resample.tsv", [*many, bad], steps.RESAMPLE_COLUMNS)

    write_qc([tmp_path / "resample.tsv"], tmp_path / "qc.tsv", tmp_path / "index.html", "A<b> (simulated)")

    flags = {row["scan_id"]: row["flags"] for row in read_tsv(tmp_path / "qc.tsv")}
    assert len(flags) == 14
    assert flags["sub-03"] == "mask_ml"
    assert set(flags.values()) == {"mask_ml", "n/a"}
    page = (tmp_path / "index.html").read_text()
    assert "A&lt;b&gt; (simulated)" in page
    assert "14 scans preprocessed, 1 of them flagged; 1 failed" in page
    assert "is all zero" in page
    pictures = re.findall(r'src="([^"]{22})', page)
    assert pictures == ["data:image/png;base64,"] * 3  # distributions, those that stand out, random ones
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_a_cohort_without_any_good_scan_has_a_page_too(cohort, tmp_path):
    rows = [row for row in read_tsv(tables(cohort)[1]) if row["status"] == "failed"]
    write_tsv(tmp_path / "resample.tsv", rows, steps.RESAMPLE_COLUMNS)
    write_qc([tmp_path / "resample.tsv"], tmp_path / "qc.tsv", tmp_path / "index.html", "A")
    assert "0 scans preprocessed" in (tmp_path / "index.html").read_text()
