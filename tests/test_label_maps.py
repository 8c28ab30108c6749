"""Label maps of a cohort: from a file to the store, and from a prediction back to the scan's grid."""

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from neuropeft.backbones.base import InputSpec
from neuropeft.config import Cohort, SegmentationTask
from neuropeft.files import read_tsv
from neuropeft.inputs import input_kind
from neuropeft.inputs.base import OUTLINES
from neuropeft.inputs.io import read_own
from neuropeft.inputs.store import pack
from neuropeft.store import open_store
from neuropeft.tasks.overlap import Overlap
from neuropeft.train.data import Volumes
from neuropeft.train.dense import predicted
from neuropeft.train.memory import BatchSize
from neuropeft.train.predict import Shown
from scans import index_row, run_chunk, save, write_index

SHAPE, VOXEL = (26, 40, 33), (1.5, 1.0, 1.2)
SETTINGS = {"size": 32, "spacing": 1.3, "labels": [1, 4]}
AFFINE = nib.affines.from_matvec(np.diag(VOXEL), [-20.0, 11.0, 7.0])
# Axes of a file that are neither in order nor all in one direction.
TURNED = nib.orientations.ornt_transform(
    nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(("P", "S", "R"))
)


def drawn(seed=0):
    """Return a scan [x, y, z] and its label map: an ellipsoid of 1, with a ball of 4 in it."""
    places = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(SHAPE) / 2 + seed
    distance = np.linalg.norm(places / np.array([8, 12, 10]), axis=-1)
    labels = (distance < 1).astype(np.uint8) + 3 * (np.linalg.norm(places - [0, 3, 2], axis=-1) < 6)
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    return (noise + 5 * labels).astype(np.float32), labels.astype(np.uint8)


def written(path, data, affine=AFFINE):
    save(path, nib.Nifti1Image(data, affine).as_reoriented(TURNED))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of good label maps, of every bad sort, and of none at all, prepared and packed."""
    root = tmp_path_factory.mktemp("cohort")
    _, labels = drawn()
    bad = {
        "truncated": (labels, AFFINE, "damaged"),
        "size": (labels[:-2], AFFINE, "26"),
        "elsewhere": (labels, nib.affines.from_matvec(np.diag(VOXEL), [-20, 11, 9]), "2 mm away"),
        "foreign": (labels + 2 * (labels == 1).astype(np.uint8), AFFINE, "holds 3"),
        "soft": (labels.astype(np.float32) / 2, AFFINE, "holds 0.5"),
        "missing": (labels, AFFINE, "is missing"),
    }
    rows = []
    for name in ("one", "two", "unlabelled", *bad):
        data, of_scan = drawn(int(name == "two"))
        scan, mask = written(root / f"{name}.nii.gz", data), root / f"{name}_label.nii.gz"
        written(mask, *bad[name][:2]) if name in bad else written(mask, of_scan)
        if name == "truncated":
            mask.write_bytes(mask.read_bytes()[: mask.stat().st_size // 2])
        if name == "missing":
            mask.unlink()
        row = index_row(name, scan, mask="n/a" if name == "unlabelled" else mask)
        rows.append(row | ({"mask_size": -1} if name == "missing" else {}))
    write_index(root, rows)
    table = run_chunk(root, "x0", SETTINGS, "volume")
    reasons = {row["subject"]: row["reason"] for row in read_tsv(table) if row["status"] == "failed"}
    assert reasons.keys() == bad.keys()
    for name, (_, _, words) in bad.items():
        assert words in reasons[name]
        assert f"{name}_label.nii.gz" in reasons[name]
    (root / "store").mkdir()
    files = (root / "store/volumes.npy", root / "store/scans.tsv")
    pack(input_kind("volume"), [table], "excluded.tsv", *files, max_excluded_share=0.9, size=32)
    return root


def test_labels_lie_in_the_store_beside_their_voxels_and_are_never_mixed(cohort):
    store = open_store(cohort / "store")
    assert store.scan_ids == ["sub-one", "sub-two", "sub-unlabelled"]
    assert store.labels.dtype == np.uint8
    assert store.labels.shape == (3, 32, 32, 32)
    assert [set(np.unique(one)) for one in store.labels] == [{0, 1, 4}, {0, 1, 4}, {0}]
    assert [row["label_sha1"] == "n/a" for row in store.rows] == [False, False, True]
    volume = store.volumes[0, 0].astype(np.float32)
    inside, core, outside = (volume[store.labels[0] == value].mean() for value in (1, 4, 0))
    assert core > inside + 1 > outside + 2, "each label covers the voxels that are as bright as it"
    size = (store.labels[0] > 0).sum() * 1.3**3
    assert size == pytest.approx((drawn()[1] > 0).sum() * np.prod(VOXEL), rel=0.05)


def test_pictures_outline_a_label_in_its_colour_in_every_slice(cohort, monkeypatch):
    (row,) = [one for one in read_tsv(cohort / "chunks/x0/prepare_volumes.tsv") if one["subject"] == "one"]
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[2:4, 14:19, 2:4], labels[14:19, 14:19, 14:19] = 1, 4
    monkeypatch.setattr(type(input_kind("volume")), "label_map", lambda *_: labels)
    figure = input_kind("volume").montage({"sub-one": row})
    drawn = [{to_hex(line.get_edgecolor()[0]) for line in axis.collections} for axis in figure.axes]
    assert drawn == [{OUTLINES[1]}, set(OUTLINES[:2]), {OUTLINES[1]}], "from above, the front and the side"


def test_a_prediction_comes_back_to_the_grid_of_its_file(cohort, tmp_path):
    store = open_store(cohort / "store")

    class Perfect(torch.nn.Module):
        """Says what the store says."""

        class backbone:
            takes = InputSpec(3, 1, 32)

        def forward(self, x):
            labels = torch.from_numpy(np.array(store.labels[:2]))[: len(x)]
            return 9.0 * torch.stack([labels == value for value in (0, 1, 4)], dim=1)

    volumes = Volumes(torch.from_numpy(np.array(store.volumes)), torch.device("cpu"))
    shown = Shown(store, volumes, torch.arange(2), ["sub-one", "sub-two"], BatchSize(2), tmp_path)
    task = SegmentationTask(kind="segmentation", train="C", classes={"rim": 1, "core": 4})
    spec = {"task": task.spec("t"), "training": {"mixed_precision": False}}
    for scan, scores in zip(shown.scans, predicted(Perfect(), spec, {}, shown), strict=True):
        rim, core = (Overlap(*scores[start : start + 3]) for start in (0, 3))
        assert min(rim.dice, core.dice) > 0.85, "voxels of 1.3 mm cannot tell more"
        assert max(rim.hd95, core.hd95) < 1.3
        assert min(rim.nsd, core.nsd) > 0.9
        found = nib.load(tmp_path / f"{scan}_dseg.nii.gz")
        label = nib.load(cohort / f"{scan.removeprefix('sub-')}_label.nii.gz")
        assert found.shape == label.shape
        np.testing.assert_allclose(found.affine, label.affine, atol=1e-5)
        assert found.get_data_dtype() == np.uint8
        assert (np.asarray(found.dataobj) == np.asarray(label.dataobj)).mean() > 0.98


def test_a_cube_that_is_too_small_cuts_and_the_rest_is_background(tmp_path):
    data, labels = drawn()
    mask = written(tmp_path / "l.nii.gz", labels)
    write_index(tmp_path, [index_row("s", written(tmp_path / "s.nii.gz", data), mask=mask)])
    (row,) = read_tsv(run_chunk(tmp_path, "x0", SETTINGS | {"size": 16, "spacing": 1.0}, "volume"))
    cube = read_own(row["preproc"])
    assert cube.shape == (16, 16, 16)
    middle = nib.affines.apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
    of_cube = nib.affines.apply_affine(cube.affine, np.full(3, 7.5))
    assert np.abs(of_cube - middle).max() < 0.8
    assert float(row["filled"]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "low", "high"), [({"zscore": "foreground"}, 0.0, None), ({"window": [0.0, 10.0]}, -1.0, 1.0)]
)
def test_channels_and_their_intensities(tmp_path, settings, low, high):
    data, labels = drawn()
    both = np.stack([data * (labels > 0), 3 * data * (labels > 0)], -1)
    save(tmp_path / "s.nii.gz", nib.Nifti1Image(both, AFFINE))
    write_index(tmp_path, [index_row("s", tmp_path / "s.nii.gz")])
    told = {"size": 48, "channels": 2, **settings}
    (row,) = read_tsv(run_chunk(tmp_path, "x0", told, "volume"))
    array = input_kind("volume").array(row, 48)
    assert array.shape == Cohort(table="t", input={"kind": "volume", "channels": 2}).input.shape(48)
    assert array[:, 0, 0, 0].tolist() == [low, low]
    if high is None:
        for channel in array:
            there = channel[channel != 0]
            assert there.mean() == pytest.approx(0, abs=1e-4)
            assert there.std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(array[0], array[1], atol=1e-4)
    else:
        assert array.max() == high
        assert (array[1] >= array[0] - 1e-5).all()
    (row,) = read_tsv(run_chunk(tmp_path, "x0", told | {"channels": 3}, "volume"))
    assert "2 volumes; 3 channels are needed" in row["reason"]
