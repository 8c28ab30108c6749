"""Resampling: one interpolation, clean edges, and a z-scored cube for the models."""

import nibabel as nib
import numpy as np
import pytest

from neuropeft.inputs.io import ScanError
from neuropeft.inputs.t1w.ninedof import NineDof
from neuropeft.inputs.t1w.resample import to_model_grid, to_template, zscore
from neuropeft.inputs.t1w.template import AFFINE, mni152_brain, mni152_mask
from scans import MOVED, STILL, brain_of, brain_scan


def test_a_scan_on_the_template_grid_passes_unchanged():
    template = mni152_brain()
    volume = to_template(template, mni152_mask().astype(np.uint8), STILL, template)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume, np.asarray(template.dataobj), atol=1e-4)


def test_neither_skull_nor_background_reaches_the_brain():
    brain = brain_of(brain_scan(MOVED)) > 0
    affine = brain_scan(MOVED).affine
    for outside in (0, 5000):
        scan = nib.Nifti1Image(np.where(brain, 100, outside).astype(np.float32), affine)
        volume = to_template(scan, brain.astype(np.uint8), MOVED, mni152_brain())
        np.testing.assert_allclose(volume[volume != 0], 100, rtol=1e-4)
        assert 0.9 < np.count_nonzero(volume) / mni152_mask().sum() < 1.1
        assert (volume[:, :, -5:] == 0).all()


def test_a_linear_ramp_is_sampled_where_the_transform_points():
    affine = np.array([[0, 0, 3.0, -100], [-2.0, 0, 0, 90], [0, 1.5, 0, -80], [0, 0, 0, 1]])
    voxels = np.moveaxis(np.indices((110, 120, 70)), 0, -1)
    places = nib.affines.apply_affine(affine, voxels)
    scan = nib.Nifti1Image((places @ [1.0, 2.0, -0.5] + 1000).astype(np.float32), affine)
    transform = NineDof((0.1, -0.2, 0.15), (3.0, -4.0, 5.0), (0.9, 1.0, 0.8))
    volume = to_template(scan, np.ones(scan.shape, np.uint8), transform, mni152_brain())
    grid = np.moveaxis(np.indices(volume.shape), 0, -1)
    expected = nib.affines.apply_affine(transform.matrix @ AFFINE, grid) @ [1.0, 2.0, -0.5] + 1000
    inside = volume != 0
    assert inside.mean() > 0.5
    np.testing.assert_allclose(volume[inside], expected[inside], atol=0.05)


def test_a_brain_off_the_grid_is_refused():
    scan = brain_scan(STILL, (4.0, 4.0, 4.0))
    far = NineDof((0, 0, 0), (900.0, 0, 0), (1, 1, 1))
    with pytest.raises(ScanError, match="template grid"):
        to_template(scan, brain_of(scan), far, mni152_brain())


def test_zscore_is_over_the_whole_volume():
    volume = np.zeros((10, 10, 10), np.float32)
    volume[:5] = 3000
    scored = zscore(volume)
    np.testing.assert_allclose(scored[:5], 1, rtol=1e-5)
    np.testing.assert_allclose(scored[5:], -1, rtol=1e-5)
    with pytest.raises(ScanError, match="constant"):
        zscore(np.zeros((4, 4, 4), np.float32))


@pytest.mark.parametrize("size", [48, 80, 96, 128])
def test_the_model_grid_is_a_scored_cube_of_the_same_picture(size):
    template = np.asarray(mni152_brain().dataobj)
    cube = to_model_grid(template, size)
    assert cube.shape == (size, size, size)
    assert cube.dtype == np.float32
    assert cube.mean() == pytest.approx(0, abs=1e-4)
    assert cube.std() == pytest.approx(1, abs=1e-4)
    # Positions keep their share of the axis: the brain's centre does not move.
    weight, weight_before = cube - cube.min(), template
    for axis, length in enumerate(template.shape):
        others = tuple(a for a in range(3) if a != axis)
        before = np.average((np.arange(length) + 0.5) / length, weights=weight_before.sum(others))
        after = np.average((np.arange(size) + 0.5) / size, weights=weight.sum(others))
        assert after == pytest.approx(before, abs=0.002)


def test_resizing_and_scoring_commute():
    volume = 500 * np.asarray(mni152_brain().dataobj)
    np.testing.assert_allclose(to_model_grid(zscore(volume)), to_model_grid(volume), atol=1e-4)


def test_resizing_keeps_left_and_right():
    volume = np.zeros((91, 109, 91), np.float32)
    volume[5:15, 80:90, 20:30] = 1
    peak = np.unravel_index(to_model_grid(volume).argmax(), (80, 80, 80))
    np.testing.assert_allclose(peak, [10 / 91 * 80, 85 / 109 * 80, 25 / 91 * 80], atol=5)
