"""Skull-stripping: each method gives a mask of the brain or says why not."""

import sys
import types
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import zoom

from neuropeft.errors import UserError
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.t1w import skullstrip
from neuropeft.inputs.t1w.skullstrip import brain_mask, mask_ml
from scans import brain_of, brain_scan, save


def test_deepbet_leaves_gpus_to_the_trainings(monkeypatch):
    deepbet, asked = types.ModuleType("deepbet"), []
    deepbet.BrainExtraction = lambda **options: asked.append(options)
    monkeypatch.setitem(sys.modules, "deepbet", deepbet)
    skullstrip._deepbet.__wrapped__()
    assert asked == [{"no_gpu": True}]


def test_a_model_that_does_not_load_stops_the_job(monkeypatch, scan):
    def damaged(**_):
        raise ValueError("bad magic number")  # the class by which deepbet says that it sees no brain

    monkeypatch.setitem(sys.modules, "deepbet", types.SimpleNamespace(BrainExtraction=damaged))
    monkeypatch.setattr(skullstrip, "_deepbet", skullstrip._deepbet.__wrapped__)
    with pytest.raises(UserError, match=r"weights of deepbet cannot be loaded.*bad magic") as caught:
        brain_mask(scan, "deepbet")
    assert not isinstance(caught.value, ScanError)


@pytest.fixture(scope="module")
def scan():
    return brain_scan(voxel_mm=(2.0, 3.0, 4.0))


def test_a_stripped_scan_is_brain_where_it_is_no_background(scan):
    data = np.asarray(scan.dataobj).copy()
    centre = tuple(np.argwhere(data > 500).mean(axis=0).astype(int))
    data[centre] = 0  # a ventricle that was stored as background
    data[0, 0, 0] = 50  # a speck
    mask = brain_mask(nib.Nifti1Image(data, scan.affine), "stripped")
    assert mask.dtype == np.uint8
    assert mask[centre] == 1
    assert mask[0, 0, 0] == 0
    assert np.mean(mask == (np.asarray(scan.dataobj) > 0)) > 0.999


def test_the_background_of_a_stripped_scan_need_not_be_zero(scan):
    lowered = nib.Nifti1Image(np.asarray(scan.dataobj) - 1000, scan.affine)
    np.testing.assert_array_equal(brain_mask(lowered, "stripped"), brain_mask(scan, "stripped"))


def test_a_stripped_scan_may_ring_about_its_background(scan):
    brain = np.asarray(scan.dataobj)
    fine = np.maximum(zoom(brain, 1.1, order=3), 0)  # as `load_scan` gives it
    image = nib.Nifti1Image(fine, scan.affine @ np.diag([1 / 1.1] * 3 + [1]))
    assert np.count_nonzero(fine) > 1.4 * np.count_nonzero(zoom(brain, 1.1, order=0))
    mask = brain_mask(image, "stripped")
    assert mask_ml(mask, image.affine) == pytest.approx(mask_ml(brain > 0, scan.affine), rel=0.08)


def test_a_brain_may_touch_the_faces_of_its_volume(scan):
    brain = np.asarray(scan.dataobj)
    low, high = np.argwhere(brain > 0).min(0), np.argwhere(brain > 0).max(0) + 1
    cropped = brain[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    fine = np.maximum(zoom(cropped, 1.1, order=3), 0)
    image = nib.Nifti1Image(fine, scan.affine @ np.diag([1 / 1.1] * 3 + [1]))
    assert mask_ml(brain_mask(image, "stripped"), image.affine) > 1500


def test_a_head_is_not_taken_for_a_brain(scan):
    """Its neck is cut by a face of the volume, and the air around it is noise."""
    grid = np.indices(scan.shape) - np.array(scan.shape)[:, None, None, None] / 2
    head = ((grid / (np.array(scan.shape)[:, None, None, None] * 0.4)) ** 2).sum(0) < 1
    neck = ((grid[:2] / (np.array(scan.shape)[:2, None, None, None] * 0.3)) ** 2).sum(0) < 1
    air = 10 * np.random.default_rng(0).random(scan.shape)
    data = np.where(head | (neck & (grid[2] < 0)), 500 + air, air).astype(np.float32)
    with pytest.raises(ScanError, match="not skull-stripped: the head reaches the faces"):
        brain_mask(nib.Nifti1Image(data, scan.affine), "stripped")


def test_a_scan_with_more_than_a_brain_is_not_taken_for_stripped(scan):
    data, affine = np.asarray(scan.dataobj), scan.affine
    share = 2200 / mask_ml(brain_mask(scan, "stripped"), affine)
    for times, refused in ((0.99, False), (1.01, True)):
        image = nib.Nifti1Image(data, affine @ np.diag([*[(times * share) ** (1 / 3)] * 3, 1]))
        with pytest.raises(ScanError, match="2222 ml, more than any brain") if refused else nullcontext():
            brain_mask(image, "stripped")


def test_noise_is_not_taken_for_a_brain():
    noise = np.random.default_rng(0).random((50, 50, 50)).astype(np.float32)
    with pytest.raises(ScanError, match="not skull-stripped"):
        brain_mask(nib.Nifti1Image(noise, np.diag([4.0, 4, 4, 1])), "stripped")


def test_a_given_mask_is_read(tmp_path, scan):
    path = save(tmp_path / "mask.nii.gz", nib.Nifti1Image(brain_of(scan), scan.affine))
    np.testing.assert_array_equal(brain_mask(scan, "given", path), brain_of(scan))
    with pytest.raises(ScanError, match="missing"):
        brain_mask(scan, "given", tmp_path / "other.nii.gz")
    with pytest.raises(ScanError, match="no brain mask"):
        brain_mask(scan, "given", None)


def test_a_mask_too_small_for_a_brain_is_refused(tmp_path, scan):
    speck = np.zeros(scan.shape, np.uint8)
    speck[20, 20, 20] = 1
    path = save(tmp_path / "mask.nii.gz", nib.Nifti1Image(speck, scan.affine))
    with pytest.raises(ScanError, match="no brain was found"):
        brain_mask(scan, "given", path)


def test_without_hd_bet_the_error_says_how_to_get_it(monkeypatch, scan):
    monkeypatch.setitem(sys.modules, "HD_BET", None)
    with pytest.raises(UserError, match=r"pip install 'neuropeft\[hd-bet\]'") as caught:
        brain_mask(scan, "hd-bet")
    assert not isinstance(caught.value, ScanError)  # no scan's fault: it must stop the job


def test_hd_bet_gets_the_scan_and_its_mask_comes_back(monkeypatch, scan):
    """With a stand-in that keeps the interface of HD-BET 2: files in, `<output>_bet.nii.gz` out."""
    downloads = []

    def predict(source, target, predictor, keep_brain_mask, compute_brain_extracted_image):
        assert predictor == "cpu"
        assert keep_brain_mask
        assert not compute_brain_extracted_image
        image = nib.load(source)
        mask = (np.asarray(image.dataobj) > 1).astype(np.uint8)
        nib.Nifti1Image(mask, image.affine).to_filename(target.removesuffix(".nii.gz") + "_bet.nii.gz")

    package, download, prediction = (types.ModuleType(name) for name in ("HD_BET", "download", "prediction"))
    download.maybe_download_parameters = lambda: downloads.append(1)
    prediction.get_hdbet_predictor = lambda device: str(device)
    prediction.hdbet_predict = predict
    monkeypatch.setitem(sys.modules, "HD_BET", package)
    monkeypatch.setitem(sys.modules, "HD_BET.checkpoint_download", download)
    monkeypatch.setitem(sys.modules, "HD_BET.hd_bet_prediction", prediction)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # GPUs are for trainings

    np.testing.assert_array_equal(brain_mask(scan, "hd-bet"), brain_of(scan))
    assert downloads


@pytest.mark.parametrize("error", [AssertionError("no foreground"), ValueError("empty")])
def test_a_scan_in_which_deepbet_sees_no_brain_is_refused(monkeypatch, scan, error):
    def run(image):
        raise error

    monkeypatch.setattr(skullstrip, "_deepbet", lambda: types.SimpleNamespace(run=run))
    with pytest.raises(ScanError, match=f"deepbet found no brain: {error}"):
        brain_mask(scan, "deepbet")


def test_an_unknown_method_is_a_users_error(scan):
    with pytest.raises(UserError, match="deepbet, hd-bet, given, stripped"):
        brain_mask(scan, "magic")


def test_mask_volume_counts_millimetres():
    assert mask_ml(np.ones((10, 10, 10)), np.diag([-1.0, 2, 5, 1])) == pytest.approx(10)
