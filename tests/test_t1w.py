"""T1-weighted scans through all steps: each step's own work, derivatives, the store, and what stops a job."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.store import pack
from neuropeft.inputs.t1w import n4, single
from neuropeft.inputs.t1w import register as registration
from neuropeft.inputs.t1w.kind import KIND
from neuropeft.inputs.t1w.ninedof import load_itk
from neuropeft.inputs.t1w.resample import to_template
from neuropeft.inputs.t1w.template import AFFINE, mni152_brain
from neuropeft.store import SIGNATURES, open_store
from scans import MOVED, STILL, brain_of, brain_scan, distance_mm, index_row, run_chunk, save, write_index

STRIPPED = {"skull_strip": "stripped"}
GIVEN = {"skull_strip": "given"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of two good scans of one brain and of one that is no brain, after all steps."""
    root = tmp_path_factory.mktemp("cohort")
    other = brain_scan(STILL, (3.0, 3.0, 3.0))
    nib.MGHImage(np.asarray(other.dataobj), other.affine).to_filename(root / "also.mgz")
    noise = np.random.default_rng(0).uniform(500, 1500, (9, 9, 9)).astype(np.float32)
    rows = [
        index_row("good", save(root / "good.nii.gz", brain_scan(MOVED, (3.0, 3.0, 3.0), "PSR")), session="2"),
        index_row("also", root / "also.mgz"),
        index_row("noise", save(root / "noise.nii.gz", nib.Nifti1Image(noise, np.diag([10.0, 10, 10, 1])))),
    ]
    write_index(root, rows)
    return run_chunk(root, "x0", STRIPPED), root


def test_steps_and_verb_correct_the_scan_and_look_at_its_brain_only(tmp_path, monkeypatch):
    scan = brain_scan(MOVED, (4.0, 4.0, 4.0))
    brain = brain_of(scan)
    shell = 4000 * binary_dilation(brain, iterations=3)
    head = nib.Nifti1Image(np.where(brain, scan.dataobj, shell).astype(np.float32), scan.affine)
    field = np.exp(np.linspace(-0.5, 0.5, scan.shape[0]))[:, None, None].astype(np.float32)
    path = save(tmp_path / "s_T1w.nii.gz", nib.Nifti1Image(head.dataobj * field, scan.affine))
    mask = save(tmp_path / "mask.nii.gz", nib.Nifti1Image(brain, scan.affine))
    registered = []

    def register(image, mask, template):
        registered.append((np.asarray(image.dataobj), mask))
        return MOVED

    # Finding field and place takes seconds and has tests of its own.
    monkeypatch.setattr(n4, "bias_field", lambda data, voxel_mm: field)
    for module in (registration, single):
        monkeypatch.setattr(module, "register", register)
    write_index(tmp_path, [index_row("s", path, mask=mask)])
    run_chunk(tmp_path, "x0", GIVEN)
    single.preprocess_scan(path, tmp_path, "given", mask)

    assert len(registered) == 2
    for seen, seen_mask in registered:
        np.testing.assert_allclose(seen, head.dataobj, rtol=1e-4)
        np.testing.assert_array_equal(seen_mask, brain)
    expected = to_template(head, brain, MOVED, mni152_brain())
    for folder, name in ((tmp_path / "derivatives/sub-s/anat", "sub-s"), (tmp_path, "s")):
        volume = nib.load(folder / f"{name}_space-MNI152_desc-preproc_T1w.nii.gz")
        np.testing.assert_allclose(volume.dataobj, expected, atol=1e-3 * expected.max())


def test_a_scan_that_is_no_brain_is_a_row_with_its_reason(cohort):
    table, _ = cohort
    rows = {row["subject"]: row for row in read_tsv(table)}
    assert [rows[name]["status"] for name in ("good", "also", "noise")] == ["ok", "ok", "failed"]
    assert rows["noise"]["step"] == "skull_strip"
    assert "not skull-stripped" in rows["noise"]["reason"]


def test_derivatives_are_where_bids_wants_them(cohort):
    _, cohort = cohort
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


def test_the_store_holds_z_scored_brains_in_one_pose(cohort, tmp_path):
    table, _ = cohort
    pack(
        KIND, [table], "x", tmp_path / "volumes.npy", tmp_path / "scans.tsv", max_excluded_share=0.9, size=40
    )
    store = open_store(tmp_path)
    assert store.scan_ids == ["sub-also", "sub-good_ses-2"]
    assert float(store.rows[1]["template_correlation"]) > 0.85
    for volume in store.volumes:
        assert volume.astype(np.float32).mean() == pytest.approx(0, abs=1e-3)
        assert volume.astype(np.float32).std() == pytest.approx(1, abs=1e-3)
    both = np.corrcoef(store.volumes.reshape(2, -1).astype(np.float32))
    assert both[0, 1] > 0.9  # two poses of one brain
    signatures = np.load(tmp_path / SIGNATURES)
    np.testing.assert_allclose(signatures, [KIND.signature(volume) for volume in store.volumes], atol=1e-6)


def test_a_vanished_derivative_is_named(cohort, tmp_path):
    gone = next(row for row in read_tsv(cohort[0]) if row["status"] == "ok")
    gone |= {"preproc": str(tmp_path / "gone.nii.gz")}
    write_tsv(tmp_path / "t.tsv", [gone], list(gone))
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        pack(
            KIND,
            [tmp_path / "t.tsv"],
            "x",
            tmp_path / "v.npy",
            tmp_path / "s.tsv",
            max_excluded_share=0,
            size=40,
        )
    assert not (tmp_path / "v.npy").exists()


@pytest.mark.parametrize("lost", ["scan", "mask"])
def test_a_disk_that_is_not_mounted_here_excludes_no_scan(tmp_path, lost):
    scan = brain_scan(voxel_mm=(4.0, 4.0, 4.0))
    paths = {name: tmp_path / f"disk-of-{name}" / "s.nii" for name in ("scan", "mask")}
    for name, path in paths.items():
        save(path, scan if name == "scan" else nib.Nifti1Image(brain_of(scan), scan.affine))
    write_index(tmp_path, [index_row("s", paths["scan"], mask=paths["mask"])])
    paths[lost].parent.rename(tmp_path / "not-mounted")
    with pytest.raises(UserError, match=rf"disk-of-{lost}/s.nii was there .* is mounted") as caught:
        run_chunk(tmp_path, "x0", GIVEN)
    assert not isinstance(caught.value, ScanError)
