"""Registration: planted transforms come back, without shear, and left stays left."""

import socket
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from neuropeft.errors import UserError
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.t1w import template
from neuropeft.inputs.t1w.measures import template_numbers, transform_numbers
from neuropeft.inputs.t1w.ninedof import NineDof, decompose, load_itk, rotation_matrix, save_itk
from neuropeft.inputs.t1w.register import register
from neuropeft.inputs.t1w.resample import to_template
from neuropeft.inputs.t1w.scan import load_scan
from neuropeft.inputs.t1w.template import AFFINE, mni152_brain, mni152_mask
from scans import LEFT_SPOT, MOVED, STILL, brain_of, brain_scan, distance_mm, save


@pytest.fixture(scope="module")
def scan():
    return brain_scan(MOVED, (2.0, 2.0, 0.9))  # slices thin enough to be averaged in pairs


@pytest.fixture(scope="module")
def found(scan):
    return register(scan, brain_of(scan), mni152_brain())


def test_a_planted_transform_comes_back(scan, found):
    assert distance_mm(found, MOVED) < 0.3
    np.testing.assert_allclose(found.scales, MOVED.scales, atol=0.005)
    np.testing.assert_allclose(found.rotation, MOVED.rotation, atol=0.01)
    assert found.rotation_deg == pytest.approx(MOVED.rotation_deg, abs=0.5)


def test_the_scan_then_lies_on_the_template(scan, found):
    volume = to_template(scan, brain_of(scan), found, mni152_brain())
    numbers = template_numbers(volume)
    assert numbers["template_correlation"] > 0.95
    assert numbers["template_overlap"] > 0.95  # the scan's mask holds every voxel the brain touches


def test_what_lies_outside_the_templates_brain_does_not_count_for_the_correlation():
    volume = np.asarray(mni152_brain().dataobj).copy()
    volume[:8, :8, :8] = 50
    assert template_numbers(volume)["template_correlation"] == pytest.approx(1)


def test_there_is_no_shear(found, tmp_path):
    save_itk(found, tmp_path / "xfm.txt")
    for matrix in (found.matrix, itk_matrix(tmp_path / "xfm.txt")):
        columns = matrix[:3, :3].T @ matrix[:3, :3]
        np.testing.assert_allclose(columns, np.diag(np.square(found.scales)), atol=1e-12)
        np.testing.assert_allclose(decompose(matrix)["shear"], 0, atol=1e-12)
    assert transform_numbers(found)["shear"] < 1e-12
    sheared = SimpleNamespace(matrix=np.eye(4), scales=(1, 1, 1), rotation_deg=0)
    sheared.matrix[0, 1] = 0.2
    assert transform_numbers(sheared)["shear"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("angles", "shift", "scales"),
    [((-40, 10, -35), (-90, 60, 120), (1.1, 0.95, 0.9)), ((5, -40, 20), (0, 0, 0), (0.75, 0.75, 0.75))],
)
def test_large_turns_and_shifts_are_found_in_voxels_of_any_size(angles, shift, scales):
    truth = NineDof(tuple(np.radians(angles)), shift, scales)
    scan = brain_scan(truth, (1.5, 5.0, 2.5), extent=220)
    assert distance_mm(register(scan, brain_of(scan), mni152_brain()), truth) < 1.0


def test_another_contrast_changes_little():
    scan = brain_scan(MOVED)
    data = np.asarray(scan.dataobj)
    harsh = 0.001 * data**2 + np.random.default_rng(0).normal(0, 60, data.shape)
    found = register(nib.Nifti1Image(harsh.astype(np.float32), scan.affine), brain_of(scan), mni152_brain())
    assert distance_mm(found, MOVED) < 1.5


@pytest.mark.parametrize("axes", ["LPS", "PSR", "ILA"])
def test_left_stays_left_whatever_the_axes(tmp_path, axes):
    path = save(tmp_path / "scan.nii.gz", brain_scan(MOVED, (2.0, 3.0, 2.5), axes, spot=1500))
    scan = load_scan(path)
    mask = brain_of(scan)
    volume = to_template(scan, mask, register(scan, mask, mni152_brain()), mni152_brain())
    brightest = np.argwhere(volume > 0.9 * volume.max())
    place = nib.affines.apply_affine(AFFINE, brightest).mean(axis=0)
    np.testing.assert_allclose(place, LEFT_SPOT, atol=3)


def test_a_head_of_impossible_size_is_refused():
    scan = brain_scan(STILL, (4.0, 4.0, 4.0))
    shrunk = nib.Nifti1Image(np.asarray(scan.dataobj), np.diag([0.4, 0.4, 0.4, 1]) @ scan.affine)
    with pytest.raises(ScanError, match="registration failed"):
        register(shrunk, brain_of(shrunk), mni152_brain())


def test_the_transform_is_what_other_tools_take_it_for(tmp_path, scan, found):
    """SimpleITK, which reads file and scan by itself, resamples to the same volume."""
    save(tmp_path / "scan.nii.gz", scan)
    save(tmp_path / "template.nii.gz", nib.Nifti1Image(np.asarray(mni152_brain().dataobj), AFFINE))
    save_itk(found, tmp_path / "xfm.txt")
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(
            sitk.ReadImage(str(tmp_path / "scan.nii.gz")),
            sitk.ReadImage(str(tmp_path / "template.nii.gz")),
            sitk.ReadTransform(str(tmp_path / "xfm.txt")),
            sitk.sitkLinear,
        )
    ).transpose()
    ours = to_template(scan, np.ones(scan.shape, np.uint8), found, mni152_brain())
    np.testing.assert_allclose(ours[mni152_mask()], theirs[mni152_mask()], atol=0.5)  # of 1000


def test_a_saved_transform_reads_back(tmp_path):
    save_itk(MOVED, tmp_path / "xfm.txt")
    np.testing.assert_allclose(load_itk(tmp_path / "xfm.txt").matrix, MOVED.matrix, atol=1e-12)


@pytest.mark.parametrize("kind", ["missing", "text", "sheared"])
def test_a_file_without_such_a_transform_is_refused(tmp_path, kind):
    path = tmp_path / "xfm.txt"
    if kind == "text":
        path.write_text("nothing")
    elif kind == "sheared":
        save_itk(STILL, path)
        path.write_text(path.read_text().replace("Parameters: 1.0 0.0", "Parameters: 1.0 0.1", 1))
    with pytest.raises(UserError, match=r"xfm\.txt"):
        load_itk(path)


def test_decomposition_shows_shear_and_reflection():
    sheared = np.eye(4)
    sheared[:3, :3] = (
        rotation_matrix((0.1, 0.2, 0.3)) @ np.diag([1, 2, 3]) @ [[1, 0.2, 0], [0, 1, -0.1], [0, 0, 1]]
    )
    parts = decompose(sheared)
    np.testing.assert_allclose(parts["shear"], [0.2, 0, -0.1], atol=1e-12)
    np.testing.assert_allclose(parts["scales"], [1, 2, 3])
    np.testing.assert_allclose(parts["rotation"], rotation_matrix((0.1, 0.2, 0.3)), atol=1e-12)
    mirrored = decompose(np.diag([-1.0, 1, 1, 1]))
    assert np.linalg.det(mirrored["rotation"]) == pytest.approx(1)
    assert mirrored["scales"].prod() == pytest.approx(-1)


def test_the_template_is_the_mni152_grid():
    template = mni152_brain()
    assert template.shape == (91, 109, 91)
    np.testing.assert_array_equal(
        template.affine, [[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
    )
    assert 1700 < mni152_mask().sum() * 8 / 1000 < 2000  # ml
    centre = nib.affines.apply_affine(AFFINE, np.argwhere(mni152_mask())).mean(axis=0)
    np.testing.assert_allclose(centre, [0, -20, 10], atol=5)
    np.testing.assert_array_equal(mni152_mask(), mni152_mask()[::-1])  # MNI152's midline is that of the grid


def test_the_template_comes_from_the_installed_package_alone(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    again = mni152_brain.__wrapped__()  # not the one that this process has read before
    np.testing.assert_array_equal(again.dataobj, mni152_brain().dataobj)
    monkeypatch.setattr(template, "FILE_IN_NILEARN", "datasets/data/none.nii.gz")
    with pytest.raises(UserError, match=r"none\.nii\.gz; install a version below"):
        mni152_brain.__wrapped__()


def itk_matrix(path):
    transform = sitk.AffineTransform(sitk.ReadTransform(str(path)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.GetTranslation()
    return matrix
