"""Bias correction: a planted field is found, and it is the one that antspyx finds at full cost."""

import nibabel as nib
import numpy as np
import pytest

from neuropeft.inputs.io import ScanError, voxel_sizes
from neuropeft.inputs.t1w.n4 import bias_field, correct_bias
from scans import brain_of, brain_scan

VOXEL = (2.0, 3.0, 4.0)


@pytest.fixture(scope="module")
def biased():
    """Return a scan with a planted field, the field and the scan's brain."""
    scan = brain_scan(voxel_mm=VOXEL)
    x, y, z = (np.linspace(-1, 1, length) for length in scan.shape)
    field = np.exp(0.5 * x[:, None, None] - 0.4 * y[:, None] ** 2 + 0.3 * z).astype(np.float32)
    return nib.Nifti1Image(np.asarray(scan.dataobj) * field, scan.affine), field, brain_of(scan) > 0


@pytest.fixture(scope="module")
def found(biased):
    scan, _, _ = biased
    return bias_field(np.asarray(scan.dataobj), voxel_sizes(scan.affine))


def apart(one, other, brain):
    difference = np.log(one[brain]) - np.log(other[brain])
    return float(difference.std())


def test_a_planted_field_is_found(biased, found):
    _, field, brain = biased
    planted = apart(field, np.ones_like(field), brain)
    assert planted > 0.2
    assert apart(found, field, brain) < 0.35 * planted  # the template is not perfectly even itself
    assert found.dtype == np.float32


@pytest.mark.slow
def test_the_field_agrees_with_that_of_all_of_n4(biased, found):
    import ants

    scan, field, brain = biased
    image = ants.from_numpy(np.asarray(scan.dataobj), spacing=list(VOXEL))
    mask = ants.from_numpy((np.asarray(scan.dataobj) > 0).astype(np.float32), spacing=list(VOXEL))
    fine = ants.n4_bias_field_correction(image, mask, shrink_factor=3, return_bias_field=True).numpy()
    assert apart(found, fine, brain) < 0.2 * apart(field, np.ones_like(field), brain)


@pytest.mark.slow
def test_turning_the_scan_turns_its_field(biased, found):
    scan, _, brain = biased
    turned = np.ascontiguousarray(np.asarray(scan.dataobj).transpose(2, 0, 1))
    field = bias_field(turned, np.array(VOXEL)[[2, 0, 1]]).transpose(1, 2, 0)
    assert apart(field, found, brain) < 0.01


def test_correction_divides_by_the_field_and_leaves_the_background(biased, found):
    scan, _, brain = biased
    data = np.asarray(scan.dataobj).copy()
    data[~brain] = -3
    corrected = np.asarray(correct_bias(nib.Nifti1Image(data, scan.affine)).dataobj)
    assert (corrected[~brain] == -3).all()
    np.testing.assert_allclose(corrected[brain], data[brain] / found[brain], rtol=0.02)


def test_a_scan_without_positive_voxels_is_refused():
    scan = nib.Nifti1Image(-np.ones((40, 40, 40), np.float32), np.diag([4.0, 4, 4, 1]))
    with pytest.raises(ScanError, match="above zero"):
        correct_bias(scan)


@pytest.mark.slow
def test_a_background_of_almost_nothing_does_not_hide_the_field(biased, found):
    scan, _, brain = biased
    data = np.asarray(scan.dataobj)
    dusty = np.where(data > 0, data, np.float32(1e-30))
    assert apart(bias_field(dusty, voxel_sizes(scan.affine)), found, brain) < 0.01
