"""The QC page: which scans stand out, and how the brains of T1-weighted scans are drawn."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs.io import save_image
from neuropeft.inputs.qc import outlier_scores, write_qc
from neuropeft.inputs.t1w.kind import KIND
from neuropeft.inputs.t1w.montage import SLICES
from neuropeft.inputs.t1w.template import AFFINE, SHAPE, mni152_brain

GOOD = {"subject": "s", "session": "n/a", "path": "/data/s.nii", "mask": "n/a", "status": "ok"} | {
    **{"mask_ml": "1500", "template_correlation": "0.9", "template_overlap": "0.95", "shear": "0"},
    **{"scale_x": "1", "scale_y": "1", "scale_z": "1", "rotation_deg": "3", "reason": "n/a", "step": "n/a"},
}
BAD = {
    "scan_id": "sub-zero",
    "path": "/data/zero.nii.gz",
    "mask": "/data/masks/m.nii",
    "status": "failed",
} | {**{"step": "n4", "reason": "/data/zero.nii.gz is all zero; the mask /data/masks/m.nii is n/a"}}


def test_outliers_are_those_far_from_the_cohorts_median():
    rng = np.random.default_rng(0)
    numbers = {
        "mask_ml": [*rng.normal(1500, 80, 30), 2100],
        "template_correlation": [*rng.normal(0.6, 0.01, 29), 0.45, 0.75],
        "rotation_deg": [*rng.normal(8, 3, 30), 60],
        "shear": [1e-17 * index for index in range(31)],
    }
    scores = outlier_scores(KIND.numbers, numbers)
    assert {name: list(np.nonzero(score > 3.5)[0]) for name, score in scores.items()} == {
        "mask_ml": [30],
        "template_correlation": [29],  # a good fit is no outlier
        "rotation_deg": [30],
        "shear": [],
    }
    assert scores["rotation_deg"][30] == np.inf


def test_a_small_cohort_has_only_implausible_numbers():
    scores = outlier_scores(
        KIND.numbers, {"mask_ml": [1500, 1501, 1502, 1900], "scale_x": [0.9, 0.9, 0.91, 1.5]}
    )
    assert list(scores["mask_ml"]) == [0, 0, 0, 0]
    assert list(scores["scale_x"]) == [0, 0, 0, np.inf]


SPOT = (25, 66, 50)  # template voxel, left of the midline and in two of the slices shown


@pytest.fixture(scope="module")
def qc(tmp_path_factory):
    """A QC page of a cohort of 20 scans, two of which stand out, and one that failed; with its figures.

    The scan that stands out most has a bright spot.
    """
    folder = tmp_path_factory.mktemp("qc")
    brain = np.asarray(mni152_brain().dataobj)
    spotted = brain.copy()
    spotted[tuple(slice(at - 2, at + 3) for at in SPOT)] = 3
    for name, volume in (("plain", brain), ("spotted", spotted)):
        save_image(folder / f"{name}.nii", volume, AFFINE, space="mni")
    good = GOOD | {"preproc": str(folder / "plain.nii")}
    many = [good | {"scan_id": f"sub-{index:02}", "mask_ml": str(1400 + index)} for index in range(20)]
    many[3] |= {"mask_ml": "2900", "preproc": str(folder / "spotted.nii")}  # implausible
    many[5] |= {"mask_ml": "2000"}  # far from the others
    write_tsv(folder / "last.tsv", [*many, BAD], list(many[0]))
    figures = []
    savefig = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        write_qc(KIND, [folder / "last.tsv"], folder / "qc.tsv", folder / "index.html", "A<b> (simulated)")
    return folder, figures


def test_the_qc_page_stands_alone_and_shows_flagged_and_failed_scans(qc):
    folder, _ = qc
    flags = {row["scan_id"]: row["flags"] for row in read_tsv(folder / "qc.tsv")}
    assert len(flags) == 20
    assert {scan for scan, names in flags.items() if names == "mask_ml"} == {"sub-03", "sub-05"}
    assert set(flags.values()) == {"mask_ml", "n/a"}
    page = (folder / "index.html").read_text()
    assert "A&lt;b&gt; (simulated)" in page
    assert "20 scans preprocessed, 2 of them flagged; 1 failed" in page
    assert "<td>zero.nii.gz is all zero; the mask m.nii is n/a</td>" in page, (
        "without the folders of the data"
    )
    for scan, number in (("sub-03", "2.9e+03"), ("sub-05", "2e+03")):
        assert f"<tr><td>{scan}</td><td class=bad>{number}</td>" in page
    pictures = re.findall(r'src="([^"]{22})', page)
    assert pictures == ["data:image/png;base64,"] * 3  # distributions, those that stand out, random ones
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_distributions_are_of_every_number_and_name_the_outliers(qc):
    _, (figure, _, _) = qc
    named = {axis.get_title(loc="left"): {text.get_text() for text in axis.texts} for axis in figure.axes}
    assert named == {
        number.label: {"sub-03", "sub-05"} if name == "mask_ml" else set()
        for name, number in KIND.numbers.items()
        if name != "shear"
    }
    assert {sum(len(points.get_offsets()) for points in axis.collections) for axis in figure.axes} == {20}


def scans_in(montage):
    """Return the axes of each scan of a montage, by the first word of its caption."""
    lines = [montage.axes[first : first + len(SLICES)] for first in range(0, len(montage.axes), len(SLICES))]
    return {line[0].get_title(loc="left").split()[0]: line for line in lines}


def test_montages_are_of_the_worst_scans_and_of_random_others(qc):
    _, (_, *montages) = qc
    worst, others = (list(scans_in(montage)) for montage in montages)
    assert worst[:2] == ["sub-03", "sub-05"]
    rest = [f"sub-{index:02}" for index in range(20) if f"sub-{index:02}" not in worst]
    assert set(others) < set(rest)
    assert others not in (rest[: len(others)], rest[-len(others) :])


def test_montages_show_each_scans_own_brain_with_left_on_the_left_under_the_templates_contours(qc):
    _, (_, *montages) = qc
    lines = scans_in(montages[0]) | scans_in(montages[1])
    bright = {}
    for scan, axes in lines.items():
        for axis, (direction, _) in zip(axes, SLICES, strict=True):
            assert len(axis.collections) == 2  # outline, border of grey and white matter
            places = np.argwhere(axis.images[0].get_array() == 3)
            if len(places):
                in_axes = axis.transData + axis.transAxes.inverted()
                bright[scan, direction] = in_axes.transform(places.mean(axis=0)[::-1])
    left, front, up = (np.array(SPOT) + 0.5) / SHAPE
    assert set(bright) == {("sub-03", 2), ("sub-03", 1)}
    np.testing.assert_allclose(bright["sub-03", 2], [left, front], atol=0.01)
    np.testing.assert_allclose(bright["sub-03", 1], [left, up], atol=0.01)


def test_a_cohort_without_any_good_scan_has_a_page_too(tmp_path):
    write_tsv(tmp_path / "last.tsv", [BAD], list(BAD))
    write_qc(KIND, [tmp_path / "last.tsv"], tmp_path / "qc.tsv", tmp_path / "index.html", "A")
    assert "0 scans preprocessed" in (tmp_path / "index.html").read_text()
