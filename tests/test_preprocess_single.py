"""The `preprocess` verb: a simulated whole head through all steps, deepbet included."""

import nibabel as nib
import numpy as np
import pytest

from neuropeft.cli import main
from neuropeft.cohorts.simulate import mask_path, participants, write_scan
from neuropeft.preprocess.io import load_mask, load_scan
from neuropeft.preprocess.ninedof import decompose, load_itk
from neuropeft.preprocess.single import preprocess_scan
from preprocess_scans import MOVED, brain_scan, save

COHORT = {
    "subjects": 1,
    "seed": 3,
    "site": "A",
    "groups": {"CN": 1.0},
    "age": [40, 60],
    "scans_per_subject": 1,
}


def test_a_whole_head_becomes_a_model_volume(tmp_path, capsys):
    person = participants(**COHORT)[0]
    scan = write_scan(person, tmp_path, 1.0)
    out = tmp_path / "out"

    assert main(["preprocess", str(scan), str(out)]) == 0

    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line)
    assert float(printed["template_correlation"]) > 0.5
    assert float(printed["shear"]) < 1e-6
    stem = scan.name.split("_T1w")[0]
    assert sorted(path.name.removeprefix(stem) for path in out.iterdir()) == [
        "_desc-brain_mask.nii.gz",
        "_desc-qc_T1w.png",
        "_from-T1w_to-MNI152_mode-image_xfm.txt",
        "_space-MNI152_desc-model_T1w.npy",
        "_space-MNI152_desc-preproc_T1w.nii.gz",
    ]
    image = load_scan(scan)
    found = load_mask(out / f"{stem}_desc-brain_mask.nii.gz", image) > 0
    truth = load_mask(mask_path(person, tmp_path), image) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    volume = np.load(out / f"{stem}_space-MNI152_desc-model_T1w.npy")
    assert volume.shape == (80, 80, 80)
    assert volume.dtype == np.float16
    preproc = nib.load(out / f"{stem}_space-MNI152_desc-preproc_T1w.nii.gz")
    assert preproc.shape == (91, 109, 91)
    shear = decompose(load_itk(out / f"{stem}_from-T1w_to-MNI152_mode-image_xfm.txt").matrix)["shear"]
    np.testing.assert_allclose(shear, 0, atol=1e-6)


def test_a_given_mask_is_used(tmp_path):
    scan = brain_scan(MOVED, (4.0, 4.0, 4.0))
    half = (np.asarray(scan.dataobj) > 300).astype(np.uint8)
    path = save(tmp_path / "s_T1w.nii", scan)
    mask = save(tmp_path / "mask.nii.gz", nib.Nifti1Image(half, scan.affine))
    numbers = preprocess_scan(path, tmp_path / "out", "given", mask)
    assert numbers["mask_ml"] == pytest.approx(half.sum() * 0.064)


@pytest.mark.parametrize("options", [["--skull-strip", "given"], ["--mask", "mask.nii.gz"]])
def test_a_mask_and_its_method_go_together(tmp_path, capsys, options):
    scan = save(tmp_path / "s_T1w.nii", brain_scan(MOVED, (4.0, 4.0, 4.0)))
    assert main(["preprocess", str(scan), str(tmp_path / "out"), *options]) == 1
    assert "go together" in capsys.readouterr().err


def test_a_bad_scan_is_one_line(tmp_path, capsys):
    assert main(["preprocess", str(tmp_path / "none.nii.gz"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.strip().endswith("is missing")
    assert error.count("\n") == 1
