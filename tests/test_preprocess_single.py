"""The `preprocess` verb; that it takes a whole head through all steps is tested as the README shows it."""

import nibabel as nib
import numpy as np
import pytest

from neuropeft.cli import main
from neuropeft.inputs.t1w.single import preprocess_scan
from scans import MOVED, brain_scan, save


@pytest.mark.slow
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
