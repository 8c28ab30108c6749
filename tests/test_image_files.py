"""What is special to 2D images: the formats and colours of files, DICOM, squares, masks, and looks."""

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from kinds import picture
from neuropeft.cohorts.duplicates import group_duplicates
from neuropeft.cohorts.index import index_cohort, index_row
from neuropeft.config import Cohort
from neuropeft.config.inputs import Image as Settings
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs.image import KIND, LUMINANCE, into_square
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.picture import read_picture
from scans import run_chunk, write_index

COLOURS = picture(0)
GREY = picture(0)[..., 0]
WINDOWED = {"channels": 3, "fit": "pad", "size": 32}


def saved(path, pixels, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# -- formats and colours ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_an_image_is_turned_upright_as_its_exif_data_say(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6  # the top of the scene is at the right side of what is stored
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    path = saved(tmp_path / f"a.{suffix}", np.rot90(COLOURS), exif=exif, **options)
    assert np.abs(read_picture(path).astype(int) - COLOURS).mean() < 3


def test_transparent_pixels_lie_on_black(tmp_path):
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:20], alpha[20:40] = 0, 51
    read = read_picture(saved(tmp_path / "a.png", np.dstack([COLOURS, alpha])))
    assert not read[:20].any()
    np.testing.assert_allclose(read[20:40], COLOURS[20:40] / 5, atol=1)
    assert np.array_equal(read[40:], COLOURS[40:])
    assert not read_picture(saved(tmp_path / "b.png", np.dstack([GREY, alpha])))[:20].any()
    clear = saved(tmp_path / "c.png", Image.fromarray(GREY), transparency=int(GREY[0, 0]))
    assert read_picture(clear)[0, 0] == 0


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    read = read_picture(saved(tmp_path / f"a.{suffix}", COLOURS, "CMYK"))
    assert np.abs(read.astype(int) - COLOURS).mean() < (20 if suffix == "jpg" else 2)


def test_a_palette_is_filled_in(tmp_path):
    few = Image.fromarray(COLOURS).quantize(16)
    assert np.array_equal(read_picture(saved(tmp_path / "a.png", few)), np.asarray(few.convert("RGB")))
    bits = saved(tmp_path / "b.png", GREY > 128)
    assert np.array_equal(read_picture(bits), 255 * (GREY > 128).astype(np.uint8))


def test_grey_that_is_stored_as_colours_is_the_same_image(tmp_path):
    one = read_picture(saved(tmp_path / "a.png", GREY))
    assert one.dtype == np.uint8
    assert np.array_equal(one, read_picture(saved(tmp_path / "b.tif", np.dstack([GREY] * 3))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_windowed_by_the_pixels_but_for_the_outermost(tmp_path, suffix):
    values = np.arange(4800, dtype=np.uint16).reshape(60, 80) + 20_000
    values[0, 0] = 65_535  # a letter on a radiograph, say
    read = read_picture(saved(tmp_path / f"a.{suffix}", values))
    assert read.dtype == np.float32
    assert (read.min(), read.max()) == (0, 1)
    np.testing.assert_allclose(read[1:-1], (values[1:-1] - 20_024.0) / 4752, atol=0.001)
    almost_flat = np.full((60, 80), 7, np.uint16)
    almost_flat[3, 3] = 9
    assert read_picture(saved(tmp_path / f"b.{suffix}", almost_flat)).sum() == 1


def test_white_may_be_low_in_tiff(tmp_path):
    path = saved(tmp_path / "a.tif", GREY.astype(np.uint16) * 100)
    before = read_picture(path)
    photometric = b"\x06\x01\x03\x00\x01\x00\x00\x00"
    assert path.read_bytes().count(photometric + b"\x01") == 1
    path.write_bytes(path.read_bytes().replace(photometric + b"\x01", photometric + b"\x00"))
    np.testing.assert_allclose(read_picture(path), 1 - before, atol=1e-6)


def test_the_preview_in_a_photograph_is_not_a_second_image(tmp_path):
    path = saved(
        tmp_path / "a.jpg", COLOURS, format="MPO", save_all=True, append_images=[Image.fromarray(GREY)]
    )
    assert read_picture(path).shape == COLOURS.shape


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "b.tif", "b.jpg", "nan.tif", "a.webp"])
def test_what_is_no_single_whole_image_is_refused(tmp_path, name):
    path = tmp_path / name
    pixels = GREY.astype(np.float32) if name == "nan.tif" else GREY
    if name == "nan.tif":
        pixels[0, 0] = np.nan
    others = {"save_all": True, "append_images": [Image.fromarray(COLOURS)]} if name[0] == "a" else {}
    saved(path, pixels, **others)
    if name[0] == "b":
        path.write_bytes(path.read_bytes()[:-300])
    words = {"a.tif": "holds 2 images", "b": "truncated or damaged", "nan.tif": "1 pixels that are NaN"}
    with pytest.raises(ScanError, match=words.get(name) or words.get(name[0], "is not a readable PNG, JPEG")):
        read_picture(path)


# -- DICOM -----------------------------------------------------------------------------------------

PATIENT = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19500101"}


def dicom(path, pixels, **header):
    """Write an image of 12 bits, of a patient, as DICOM."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = header.pop("syntax", ExplicitVRLittleEndian)
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    given = PATIENT | {
        **{"Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12},
        **{"HighBit": 11, "PixelRepresentation": 0, "PixelData": pixels.astype("<u2").tobytes()},
    }
    for name, value in (given | header).items():
        setattr(data, name, value)
    if data.PixelData is None:
        del data.PixelData
    data.save_as(path, enforce_file_format=True)
    return path


VALUES = 16 * GREY.astype(np.float32)


def test_the_first_window_of_a_radiograph_is_applied_and_white_may_be_low(tmp_path):
    window = {"WindowCenter": [1000.5, 50], "WindowWidth": [1001, 10]}
    shown = np.clip((VALUES - 500) / 1000, 0, 1)
    np.testing.assert_allclose(read_picture(dicom(tmp_path / "a", VALUES, **window)), shown, atol=1e-5)
    inverted = dicom(tmp_path / "b.dcm", VALUES, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(read_picture(inverted), 1 - shown, atol=1e-5)
    rescaled = dicom(tmp_path / "c.dcm", VALUES, RescaleSlope=2, RescaleIntercept=-1000, **window)
    np.testing.assert_allclose(read_picture(rescaled), np.clip((2 * VALUES - 1500) / 1000, 0, 1), atol=1e-5)
    exact = dicom(tmp_path / "d.dcm", VALUES, VOILUTFunction="LINEAR_EXACT", **window)
    np.testing.assert_allclose(read_picture(exact), np.clip((VALUES - 500) / 1001, 0, 1), atol=1e-5)
    sigmoid = read_picture(dicom(tmp_path / "e.dcm", VALUES, VOILUTFunction="SIGMOID", **window))
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-4 * (VALUES - 1000.5) / 1001)), atol=1e-5)


def test_a_radiograph_without_a_window_is_windowed_by_its_pixels(tmp_path):
    low, high = np.quantile(VALUES, (0.005, 0.995))
    shown = np.clip((VALUES - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read_picture(dicom(tmp_path / "a.dcm", VALUES)), shown, atol=1e-5)


def test_a_radiograph_may_have_a_table_in_place_of_a_window(tmp_path):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 8], (np.arange(4096) // 16).tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    read = read_picture(dicom(tmp_path / "a.dcm", VALUES, VOILUTSequence=[item]))
    np.testing.assert_allclose(read, GREY / 255, atol=1e-5)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"NumberOfFrames": 2, "PixelData": bytes(4 * 4800)}, "DICOM of 2 frames"),
        ({"PixelData": None}, "without an image"),
        ({"PixelData": bytes(4800)}, "truncated or damaged"),
        ({"Rows": 30_000}, "80 x 30000 pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "16 bits PALETTE COLOR; convert it"),
        ({"syntax": JPEGLosslessSV1, "PixelData": b"\xfe\xff\x00\xe0\0\0\0\0" * 2}, "JPEG Lossless|damaged"),
    ],
)
def test_dicom_that_holds_no_single_image_is_refused(tmp_path, header, words):
    with pytest.raises(ScanError, match=words):
        read_picture(dicom(tmp_path / "a.dcm", VALUES, **header))


def test_no_field_of_a_patient_is_carried_on(tmp_path, capfd):
    rows = [index_row_of(tmp_path, "a", dicom(tmp_path / "a.dcm", VALUES, PatientAge="999Y"))]
    write_index(tmp_path, rows)
    table = run_chunk(tmp_path, "x0", WINDOWED, "image")
    assert read_tsv(table)[0]["status"] == "ok"
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    said = "".join(capfd.readouterr()).encode() + b"".join(path.read_bytes() for path in written)
    assert not [value for value in PATIENT.values() if value.encode() in said]
    assert len(Image.open(read_tsv(table)[0]["preproc"]).info) == 0


def index_row_of(root, subject, path, mask=None):
    """Return the row of an image in the index of a cohort that is a table."""
    write_tsv(
        root / "table.tsv", [{"path": path, "subject": subject, "mask": mask}], ("path", "subject", "mask")
    )
    cohort = Cohort(table=str(root / "table.tsv"), input="image")
    return index_row(index_cohort("C", cohort, 1)[0]) | {"chunk": "x0"}


# -- squares, masks, looks -------------------------------------------------------------------------


def test_an_image_keeps_its_aspect_in_its_square():
    padded, alone = into_square(COLOURS, 40, "pad")
    assert (padded.shape, alone.shape) == ((40, 40, 3), (30, 40, 3))
    assert not padded[:5].any()
    assert not padded[35:].any()
    assert np.array_equal(padded[5:35], alone)
    cropped, _ = into_square(COLOURS, 60, "crop")
    np.testing.assert_allclose(cropped, COLOURS[:, 10:70] / 255, atol=1e-6)
    thin, _ = into_square(np.full((8, 9000), 255, np.uint8), 32, "pad")
    assert thin.sum() == 32


@pytest.mark.parametrize(("pixels", "name"), [(COLOURS, "colours"), (GREY, "grey")])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_as_many_as_configured(tmp_path, pixels, name, channels):
    write_index(tmp_path, [index_row_of(tmp_path, "a", saved(tmp_path / "a.png", pixels))])
    table = run_chunk(tmp_path, "x0", {"channels": channels, "fit": "crop", "size": 60}, "image")
    array = KIND.array(read_tsv(table)[0], 60)
    assert array.shape == Settings(channels=channels).shape(60)
    expected = pixels[:, 10:70] / 255
    if name == "grey":
        expected = np.stack([expected] * channels)
    else:
        expected = np.moveaxis(expected, -1, 0) if channels == 3 else (expected @ LUMINANCE)[None]
    np.testing.assert_allclose(array, expected, atol=0.003)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((60, 80), None), ((80, 60), "has 60 x 80 pixels, its image 80 x 60"), (None, "missing")],
)
def test_a_mask_is_as_large_as_its_image(tmp_path, shape, words):
    if shape:
        saved(tmp_path / "m.png", np.zeros(shape, np.uint8))
    write_index(tmp_path, [index_row_of(tmp_path, "a", saved(tmp_path / "a.png", GREY), "m.png")])
    (row,) = read_tsv(run_chunk(tmp_path, "x0", WINDOWED, "image"))
    assert row["mask"] == str(tmp_path / "m.png")
    assert row["status"] == ("ok" if words is None else "failed")
    assert words is None or words in row["reason"]


LABELLED = {**WINDOWED, "labels": [3, 255]}


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_mask_goes_into_the_square_with_its_image_and_comes_back(tmp_path, fit):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:50], mask[25:50, 40:65] = 255, 3
    pixels = np.maximum(mask, 20)  # bright where the mask is
    saved(tmp_path / "m.png", mask)
    write_index(tmp_path, [index_row_of(tmp_path, "a", saved(tmp_path / "a.png", pixels), "m.png")])
    (row,) = read_tsv(run_chunk(tmp_path, "x0", {**LABELLED, "fit": fit}, "image"))
    labels = KIND.label_map(row, 32)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 3, 255}
    bright = KIND.array(row, 32)[0] > 0.5
    assert (bright == (labels == 255)).mean() > 0.97, "borders alone differ"
    own = KIND.to_own_grid(row, np.stack([labels == value for value in (3, 255)]).astype(np.float32))
    assert np.array_equal(own.labels, mask)
    found = np.where(own.maps[0] > 0.5, 3, 0) + np.where(own.maps[1] > 0.5, 255, 0)
    assert found.shape == mask.shape
    assert (found == mask).mean() > 0.95
    KIND.write_label_map(row, mask, tmp_path / "a_dseg")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_dseg.png")), mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((60, 80), 4, np.uint8), "holds 4, which the `labels`"),
        (np.dstack([GREY, GREY, 0 * GREY]), "colours"),
        (np.zeros((60, 81), np.uint8), "has 81 x 60 pixels"),
    ],
)
def test_a_mask_that_cannot_be_learnt_excludes_its_image(tmp_path, mask, words):
    saved(tmp_path / "m.png", mask)
    write_index(tmp_path, [index_row_of(tmp_path, "a", saved(tmp_path / "a.png", GREY), "m.png")])
    (row,) = read_tsv(run_chunk(tmp_path, "x0", LABELLED, "image"))
    assert row["status"] == "failed"
    assert words in row["reason"]


def test_a_threshold_makes_one_label_of_a_soft_mask(tmp_path):
    soft = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    saved(tmp_path / "m.png", soft)
    write_index(tmp_path, [index_row_of(tmp_path, "a", saved(tmp_path / "a.png", GREY), "m.png")])
    told = Settings(kind="image", labels=[3], threshold=127).told(None, 32)
    (row,) = read_tsv(run_chunk(tmp_path, "x0", told, "image"))
    assert np.array_equal(np.asarray(Image.open(row["dseg"])), 3 * (soft > 127))
    with pytest.raises(ValidationError, match="one label"):
        Settings(kind="image", labels=[3, 4], threshold=127)


def photograph(number, size=(300, 300)):
    """Return a soft pattern in the round field of a camera that is the same for all."""
    random = np.random.default_rng(number).uniform(60, 200, (20, 20)).astype(np.float32)
    soft = np.asarray(Image.fromarray(random).resize(size, Image.Resampling.BICUBIC))
    y, x = np.indices(soft.shape) - 150
    return np.where(x**2 + y**2 < 120**2, np.clip(soft, 0, 255), 0).astype(np.uint8)


def test_an_image_that_is_stored_anew_is_known_again_and_others_of_its_camera_are_not():
    def signature(pixels):
        square, _ = into_square(pixels, 96, "pad")
        return KIND.signature(square[None].astype(np.float16))

    one, other = photograph(0), photograph(1)
    stream = io.BytesIO()
    Image.fromarray(one).resize((170, 170)).point(lambda value: 0.8 * value).save(stream, "JPEG")
    again = np.asarray(Image.open(stream))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8
    assert signature(one) @ signature(again) > Settings.same + 0.05
    assert signature(one) @ signature(other) < 0.5


def test_images_that_look_the_same_become_those_of_one_subject(tmp_path):
    marked = photograph(0)
    marked[140:143, 140:160] = 255  # calipers
    images = {"a": photograph(0), "b": photograph(1), "c": marked, "d": photograph(2), "e": photograph(1)}
    rows = [
        {
            "path": f"{name}.png",
            "subject": "d" if name == "e" else name,
            "mask": "m.png" if name == "a" else "",
        }
        for name in (*images, "broken")
    ]
    for name, pixels in images.items():
        saved(tmp_path / f"{name}.png", pixels)
    (tmp_path / "broken.png").touch()
    write_tsv(tmp_path / "table.tsv", rows, ("path", "subject", "mask"))
    assert group_duplicates(tmp_path / "table.tsv", tmp_path / "out/grouped.tsv", 96) == (5, 3)
    found = read_tsv(tmp_path / "out/grouped.tsv")
    assert [row["subject"] for row in found] == ["a", "b", "a", "b", "b", "broken"], (
        "d is in e's group, e in b's"
    )
    assert found[0]["path"] == str(tmp_path / "a.png")
    assert [row["mask"] for row in found[:2]] == [str(tmp_path / "m.png"), ""]
    cohort = Cohort(table=str(tmp_path / "out/grouped.tsv"), input="image")
    assert [scan.mask for scan in index_cohort("C", cohort, 1)][:2] == [str(tmp_path / "m.png"), None]
