"""Reading scans: every order of axes comes out in RAS, and what is no scan is refused with its reason."""

import errno
import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import zoom

from neuropeft.errors import UserError
from neuropeft.inputs.io import ScanError, read_own, save_image, voxel_hash
from neuropeft.inputs.t1w.scan import load_mask, load_scan
from scans import MOVED, brain_scan, save


@pytest.fixture(scope="module")
def scan():
    return brain_scan(MOVED, (3.0, 2.5, 4.0), spot=500)


@pytest.mark.parametrize("axes", ["LPS", "PSR", "SAL", "AIL", "IRP"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
def test_every_axis_order_and_format_reads_as_the_same_ras_scan(tmp_path, scan, axes, suffix):
    kind = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    wanted = nib.orientations.axcodes2ornt(axes)
    turned = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), wanted))
    assert nib.aff2axcodes(turned.affine) == tuple(axes)
    nib.save(kind(np.asarray(turned.dataobj), turned.affine), tmp_path / f"scan{suffix}")

    read = load_scan(tmp_path / f"scan{suffix}")

    assert nib.aff2axcodes(read.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(read.dataobj), np.asarray(scan.dataobj))
    assert voxel_hash(read) == voxel_hash(load_scan(save(tmp_path / "same.nii", scan)))
    np.testing.assert_allclose(read.affine, scan.affine, atol=1e-3)


@pytest.mark.parametrize(("low", "background"), [(-1024, -1024), (-300, 0), (-3, -3), (5, 10)])
def test_tissue_is_above_zero_and_the_background_at_zero(tmp_path, scan, low, background):
    """Scans with an offset, and brains standardised inside, have tissue at or below their background."""
    data = np.asarray(scan.dataobj)
    brain = data > 0
    shifted = np.where(brain, data + low, background).astype(np.float32)
    read = np.asarray(load_scan(save(tmp_path / "s.nii", nib.Nifti1Image(shifted, scan.affine))).dataobj)
    assert (read[~brain] == 0).all()
    assert (read[brain] > 0).mean() > 0.99
    expected = data[brain] + low - min(0, shifted.min())
    np.testing.assert_allclose(read[brain][read[brain] > 0], expected[read[brain] > 0], atol=1e-3)


def test_tissue_that_fills_the_faces_is_no_background(tmp_path, scan):
    """A tight field of view, with noise about 0 where there is no tissue."""
    generator = np.random.default_rng(0)
    data = np.rint(generator.normal(200, 40, scan.shape)).astype(np.float32)
    data[20:40, 20:40, 20:30] = np.rint(generator.normal(0, 60, (20, 20, 10)))
    read = np.asarray(load_scan(save(tmp_path / "s.nii", nib.Nifti1Image(data, scan.affine))).dataobj)
    np.testing.assert_allclose(read, data - data.min())


@pytest.mark.parametrize("background", [0, -1024])
def test_ringing_about_the_background_goes_to_zero(tmp_path, scan, background):
    """A brain that was stripped and then resampled by splines goes a little below its background."""
    fine = zoom(np.asarray(scan.dataobj), 1.1, order=3)
    nearest = zoom(np.asarray(scan.dataobj), 1.1, order=0)
    assert fine.min() < -20
    image = nib.Nifti1Image(fine + np.float32(background), scan.affine @ np.diag([1 / 1.1] * 3 + [1]))
    read = np.asarray(load_scan(save(tmp_path / "s.nii", image)).dataobj)
    np.testing.assert_allclose(read, np.maximum(fine, 0), atol=1e-3)
    assert np.quantile(read[nearest == 0], 0.9) < 1


def test_an_oblique_scan_keeps_its_angles(tmp_path):
    c, s = 2 * np.cos(np.radians(25)), 2 * np.sin(np.radians(25))
    affine = np.array([[-c, s, 0, 9], [s, c, 0, 8], [0, 0, 2, 7], [0, 0, 0, 1]])
    data = np.random.default_rng(0).random((40, 50, 60)).astype(np.float32)
    read = load_scan(save(tmp_path / "scan.nii.gz", nib.Nifti1Image(data, affine)))

    place = affine @ [3, 4, 5, 1]
    voxel = np.rint(np.linalg.solve(read.affine, place)[:3]).astype(int)
    np.testing.assert_allclose(read.affine @ [*voxel, 1], place, atol=1e-3)
    assert read.dataobj[tuple(voxel)] == data[3, 4, 5]


def test_a_single_volume_of_four_dimensions_is_a_scan(tmp_path, scan):
    data = np.asarray(scan.dataobj)
    path = save(tmp_path / "scan.nii.gz", nib.Nifti1Image(data[..., None], scan.affine))
    np.testing.assert_array_equal(np.asarray(load_scan(path).dataobj), data)


def test_the_header_of_the_scan_does_not_travel_on(tmp_path, scan):
    named = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine)
    named.header["descrip"] = b"Jane Doe"
    assert b"Jane Doe" not in load_scan(save(tmp_path / "scan.nii.gz", named)).header.binaryblock


# What is written over a good file, and from which of its bytes on.
PATCHED = {
    "promised voxels": (42, np.array([266, 320, 200], "<i2").tobytes()),
    "infinite offset": (108, np.array(np.inf, "<f4").tobytes()),
    "absurd offset": (108, np.array(1e30, "<f4").tobytes()),
    "negative offset": (108, np.array(-1e6, "<f4").tobytes()),
    "MGH without orientation": (28, bytes(2)),
}


def broken(kind, path, scan):
    data, affine = np.asarray(scan.dataobj), scan.affine
    if kind == "missing":
        return path
    if kind in ("truncated", "flipped bits"):
        save(path, scan)
        content = bytearray(path.read_bytes())
        if kind == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
        return path
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind in PATCHED:
        at, content = PATCHED[kind]
        path = path.with_suffix("").with_suffix(".mgz") if kind == "MGH without orientation" else path
        (nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image)(data, affine).to_filename(path)
        whole = bytearray(gzip.decompress(path.read_bytes()))
        whole[at : at + len(content)] = content
        path.write_bytes(gzip.compress(bytes(whole)))
    elif kind == "text":
        path.write_bytes(gzip.compress(b"not an image" * 100))
    elif kind == "colours":
        colours = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.Nifti1Image(colours, affine).to_filename(path)
    elif kind == "pointer":
        path.write_bytes(b"/annex/objects/MD5E-s1234--0123.nii.gz")
    elif kind == "broken link":
        path.symlink_to(path.with_name("not-fetched.nii.gz"))
    elif kind == "no orientation":
        nib.Nifti1Image(data, None).to_filename(path)
    else:
        changed = {
            "all zero": (np.zeros_like(data), affine),
            "constant": (np.full_like(data, 7), affine),
            "2D": (data[:, :, 20], affine),
            "one slice": (data[:, :, 20:21], affine),
            "4D": (np.stack([data, data], axis=-1), affine),
            "NaN": (np.where(data == data.max(), np.nan, data), affine),
            "infinite": (np.where(data == data.max(), np.inf, data), affine),
            "metres": (data, np.diag([0.001, 0.001, 0.001, 1]) @ affine),
            "huge voxels": (data, np.diag([9, 9, 9, 1]) @ affine),
            "crop": (data[30:40, 30:40, 20:30], affine),
        }
        save(path, nib.Nifti1Image(*changed[kind]))
    return path


REASONS = {
    "missing": "is missing",
    "pointer": "not compressed as its name says",
    "broken link": "a link to a file that is not there",
    "truncated": "truncated or damaged",
    "flipped bits": "truncated or damaged",
    "promised voxels": "its header promises 68,096,352 bytes, it has ",
    "infinite offset": "truncated or damaged",
    "absurd offset": "truncated or damaged",
    "negative offset": "not a readable image",
    "MGH without orientation": "no orientation (goodRASFlag is 0)",
    "empty file": "not a readable image",
    "text": "not a readable image",
    "colours": "colours",
    "no orientation": "no orientation",
    "all zero": "all zero",
    "constant": "constant (7 everywhere)",
    "2D": "2D image",
    "one slice": "2D image",
    "4D": "4D image of 2 volumes",
    "NaN": "NaN",
    "infinite": "infinite",
    "metres": "voxels of",
    "huge voxels": "voxels of",
    "crop": "covers 30 x 25 x 40 mm",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_is_no_scan_is_refused_with_its_reason(tmp_path, scan, kind):
    path = broken(kind, tmp_path / "scan.nii.gz", scan)
    tracemalloc.start()
    with pytest.raises(ScanError) as caught:
        load_scan(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6, "no more than the file is worth, whatever it promises"
    tracemalloc.stop()
    assert REASONS[kind] in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("read", [load_scan, read_own])
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden by the library"])
@pytest.mark.parametrize("code", ["EIO", "ESTALE", "EACCES", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOTCONN"])
def test_a_disk_that_fails_is_no_scans_fault(tmp_path, scan, monkeypatch, code, hidden, read):
    def fail(path):
        try:
            raise OSError(getattr(errno, code), "it failed")
        except OSError as error:
            if hidden:
                raise nib.filebasedimages.ImageFileError("no image") from error
            raise

    nib.save(scan, tmp_path / "scan.nii")
    monkeypatch.setattr(nib, "load", fail)
    monkeypatch.setattr(nib.Nifti1Image, "from_filename", fail)
    with pytest.raises(UserError, match=r"scan\.nii: it failed \(on .*run again$") as caught:
        read(tmp_path / "scan.nii")
    assert not isinstance(caught.value, ScanError)


@pytest.mark.parametrize("value", [0, np.nan])
def test_the_qform_serves_where_the_sform_says_nothing(tmp_path, scan, value):
    image = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine)
    image.set_qform(scan.affine, code=1)
    path = save(tmp_path / "scan.nii", image)
    content = bytearray(path.read_bytes())
    content[280:328] = np.full(12, value, "<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(content))
    assert nib.load(path).header["sform_code"] > 0
    np.testing.assert_allclose(load_scan(path).affine, scan.affine, atol=1e-3)


def test_dicom_is_refused_with_a_way_out(tmp_path):
    path = tmp_path / "slice.dcm"
    path.write_bytes(b"DICM")
    with pytest.raises(ScanError, match="dcm2niix"):
        load_scan(path)


def test_a_mask_follows_its_scan_into_ras(tmp_path, scan):
    inside = np.asarray(scan.dataobj) > 400
    turned = nib.Nifti1Image(inside.astype(np.uint8), scan.affine).as_reoriented(
        nib.orientations.axcodes2ornt("LIP")
    )
    mask = load_mask(save(tmp_path / "mask.nii.gz", turned), scan)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, inside)


@pytest.mark.parametrize("kind", ["shape", "place", "flip", "empty"])
def test_a_mask_of_another_grid_is_refused(tmp_path, scan, kind):
    inside, affine = (np.asarray(scan.dataobj) > 400).astype(np.uint8), scan.affine.copy()
    if kind == "shape":
        inside = inside[:-1]
    elif kind == "place":
        affine[0, 3] += 2
    elif kind == "flip":
        affine = affine @ np.diag([-1, 1, 1, 1])
    else:
        inside[:] = 0
    reason = {"shape": "shape", "place": "by 2 mm", "flip": "grid", "empty": "empty"}[kind]
    with pytest.raises(ScanError, match=reason):
        load_mask(save(tmp_path / "mask.nii.gz", nib.Nifti1Image(inside, affine)), scan)


def test_images_are_written_whole_with_their_space(tmp_path, scan):
    save_image(tmp_path / "deep" / "image.nii.gz", np.asarray(scan.dataobj), scan.affine, space="mni")
    read = nib.load(tmp_path / "deep" / "image.nii.gz")
    assert int(read.header["sform_code"]) == 4
    assert read.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(read.dataobj), np.asarray(scan.dataobj))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["image.nii.gz"]
