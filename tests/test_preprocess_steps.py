"""The steps over chunks, from an index to the store and the QC page: one bad scan is a row, not the end."""

import errno
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.ndimage import binary_dilation

from neuropeft.cli import main
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.preprocess import n4, single, steps
from neuropeft.preprocess.io import ScanError
from neuropeft.preprocess.measures import NUMBERS, signature
from neuropeft.preprocess.ninedof import load_itk
from neuropeft.preprocess.qc import SLICES, outlier_scores, write_qc
from neuropeft.preprocess.resample import to_template
from neuropeft.preprocess.store import list_excluded, pack
from neuropeft.preprocess.template import AFFINE, SHAPE, mni152_brain
from neuropeft.store import SIGNATURES, open_store
from preprocess_scans import MOVED, STILL, brain_of, brain_scan, distance_mm, save

WORKFLOW = Path(__file__).parents[1] / "workflow"
INDEX_COLUMNS = ("scan_id", "subject", "session", "path", "mask", "size", "mask_size", "mtime_ns", "chunk")
# Of every bad kind: its chunk, the step that refuses it, and words of its reason.
BAD = {
    "truncated": ("x0", "n4", "truncated"),
    "zero": ("x0", "n4", "all zero"),
    "flat": ("x0", "n4", "2D"),
    "series": ("x0", "n4", "4D"),
    "holes": ("x1", "n4", "NaN"),
    "missing": ("x1", "n4", "missing"),
    "noise": ("x1", "skull_strip", "not skull-stripped"),
}


def row(subject, path, session="n/a", chunk="x0", mask="n/a"):
    scan_id = f"sub-{subject}" + ("" if session == "n/a" else f"_ses-{session}")
    state = {
        "size": 1 if path.exists() else -1,
        "mask_size": 1,
        "mtime_ns": 1,
        "mask": str(mask),
        "chunk": chunk,
    }
    return {"scan_id": scan_id, "subject": subject, "session": session, "path": path, **state}


def write_scans(folder):
    """Write two good scans and one of every bad kind; return their index rows, not sorted."""
    good = brain_scan(MOVED, (3.0, 3.0, 3.0), "PSR")
    other = brain_scan(STILL, (3.0, 3.0, 3.0))
    data, affine = np.asarray(other.dataobj), other.affine
    rows = [row("good", save(folder / "good.nii.gz", good), session="2")]
    nib.MGHImage(data, affine).to_filename(folder / "also.mgz")
    rows.append(row("also", folder / "also.mgz", chunk="x1"))
    whole = save(folder / "truncated.nii.gz", other).read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(folder / "zero.nii.gz", nib.Nifti1Image(0 * data, affine))
    save(folder / "flat.nii.gz", nib.Nifti1Image(data[:, :, 30], affine))
    save(folder / "series.nii.gz", nib.Nifti1Image(np.stack([data, data], -1), affine))
    save(folder / "holes.nii.gz", nib.Nifti1Image(np.where(data > 900, np.nan, data), affine))
    noise = np.random.default_rng(0).uniform(500, 1500, (9, 9, 9)).astype(np.float32)
    save(folder / "noise.nii.gz", nib.Nifti1Image(noise, np.diag([10.0, 10, 10, 1])))
    return rows + [row(kind, folder / f"{kind}.nii.gz", chunk=chunk) for kind, (chunk, *_) in BAD.items()]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return the folder of a cohort whose two chunks went through all four steps."""
    root = tmp_path_factory.mktemp("cohort")
    write_tsv(root / "scans.tsv", write_scans(root / "raw"), INDEX_COLUMNS)
    for chunk in ("x0", "x1"):
        run_chunk(root, chunk)
    return root


def run_chunk(root, chunk, method="stripped"):
    folder = root / "chunks" / chunk
    steps.run_n4(root / "scans.tsv", chunk, folder / "n4", folder / "n4.tsv")
    steps.run_skull_strip(
        folder / "n4.tsv", folder / "n4", method, root / "derivatives", folder / "skull_strip.tsv"
    )
    steps.run_register(
        folder / "skull_strip.tsv", folder / "n4", root / "derivatives", folder / "register.tsv"
    )
    steps.run_resample(folder / "register.tsv", folder / "n4", root / "derivatives", folder / "resample.tsv")


def test_steps_and_verb_correct_the_scan_and_look_at_its_brain_only(tmp_path, monkeypatch):
    scan = brain_scan(MOVED, (4.0, 4.0, 4.0))
    brain = brain_of(scan)
    shell = 4000 * binary_dilation(brain, iterations=3)
    head = nib.Nifti1Image(np.where(brain, scan.dataobj, shell).astype(np.float32), scan.affine)
    field = np.exp(np.linspace(-0.5, 0.5, scan.shape[0]))[:, None, None].astype(np.float32)
    path = save(tmp_path / "s_T1w.nii.gz", nib.Nifti1Image(head.dataobj * field, scan.affine))
    mask = save(tmp_path / "mask.nii.gz", nib.Nifti1Image(brain, scan.affine))
    registered = []

    def register(image, mask, template):
        registered.append((np.asarray(image.dataobj), mask))
        return MOVED

    # Finding field and place takes seconds and has tests of its own.
    monkeypatch.setattr(n4, "bias_field", lambda data, voxel_mm: field)
    for module in (steps, single):
        monkeypatch.setattr(module, "register", register)
    write_tsv(tmp_path / "scans.tsv", [row("s", path, mask=mask)], INDEX_COLUMNS)
    run_chunk(tmp_path, "x0", method="given")
    single.preprocess_scan(path, tmp_path, "given", mask)

    assert len(registered) == 2
    for seen, seen_mask in registered:
        np.testing.assert_allclose(seen, head.dataobj, rtol=1e-4)
        np.testing.assert_array_equal(seen_mask, brain)
    expected = to_template(head, brain, MOVED, mni152_brain())
    for folder, name in ((tmp_path / "derivatives/sub-s/anat", "sub-s"), (tmp_path, "s")):
        volume = nib.load(folder / f"{name}_space-MNI152_desc-preproc_T1w.nii.gz")
        np.testing.assert_allclose(volume.dataobj, expected, atol=1e-3 * expected.max())


def tables(root):
    return [root / "chunks" / chunk / "resample.tsv" for chunk in ("x1", "x0")]


def test_bad_scans_become_rows_with_their_reasons(cohort):
    list_excluded(tables(cohort), cohort / "excluded.tsv")
    reasons = {excluded["subject"]: excluded for excluded in read_tsv(cohort / "excluded.tsv")}
    assert set(reasons) == set(BAD)
    for kind, (_, step, words) in BAD.items():
        assert reasons[kind]["step"] == step
        assert words in reasons[kind]["reason"]
        assert reasons[kind]["path"].endswith(f"{kind}.nii.gz")


def test_every_step_carries_all_scans_of_its_chunk_forward(cohort):
    failed = [row for row in read_tsv(cohort / "chunks/x0/n4.tsv") if row["status"] == "failed"]
    for step in ("n4", "skull_strip", "register", "resample"):
        rows = [row for chunk in ("x0", "x1") for row in read_tsv(cohort / "chunks" / chunk / f"{step}.tsv")]
        assert {row["subject"] for row in rows} == {"good", "also", *BAD}
        good = ["good", "also"] + ["noise"] * (step == "n4")
        assert [row["subject"] for row in rows if row["status"] == "ok"] == good
        kept = [{column: row[column] for column in steps.SCAN_COLUMNS} for row in rows]
        assert all(row in kept for row in failed), "with the step and the reason of their failure"
        assert tuple(rows[0]) == getattr(steps, f"{step.upper()}_COLUMNS", steps.SCAN_COLUMNS)


def test_derivatives_are_where_bids_wants_them(cohort):
    anat = cohort / "derivatives" / "sub-good" / "ses-2" / "anat"
    assert sorted(path.name for path in anat.iterdir()) == [
        "sub-good_ses-2_desc-brain_mask.nii.gz",
        "sub-good_ses-2_from-T1w_to-MNI152_mode-image_xfm.txt",
        "sub-good_ses-2_space-MNI152_desc-preproc_T1w.nii.gz",
    ]
    assert (cohort / "derivatives" / "dataset_description.json").is_file()
    assert (cohort / "derivatives" / "sub-also" / "anat").is_dir()
    preproc = nib.load(anat / "sub-good_ses-2_space-MNI152_desc-preproc_T1w.nii.gz")
    assert preproc.shape == (91, 109, 91)
    np.testing.assert_array_equal(preproc.affine, AFFINE)
    assert (np.asarray(preproc.dataobj)[:, :, -4:] == 0).all()
    transform = load_itk(anat / "sub-good_ses-2_from-T1w_to-MNI152_mode-image_xfm.txt")
    assert distance_mm(transform, MOVED) < 1.0


def test_the_store_holds_the_good_scans_in_order(cohort):
    list_excluded(tables(cohort), cohort / "excluded.tsv")
    store_dir = cohort / "store"
    pack(
        tables(cohort),
        cohort / "excluded.tsv",
        store_dir / "volumes.npy",
        store_dir / "scans.tsv",
        max_excluded_share=0.9,
        size=40,
    )
    store = open_store(store_dir)
    assert store.scan_ids == ["sub-also", "sub-good_ses-2"]
    assert store.volumes.shape == (2, 40, 40, 40)
    assert store.volumes.dtype == np.float16
    assert isinstance(store.volumes, np.memmap)
    assert store.index_of("sub-good_ses-2") == 1
    assert [row["row"] for row in store.rows] == ["0", "1"]
    hashes = [hashlib.sha1(volume.tobytes()).hexdigest() for volume in store.volumes]
    assert [row["sha1"] for row in store.rows] == hashes
    assert len({row["raw_sha1"] for row in store.rows}) == 2
    signatures = np.load(store_dir / SIGNATURES)
    np.testing.assert_allclose(signatures, [signature(volume) for volume in store.volumes], atol=1e-6)
    assert float(store.rows[1]["template_correlation"]) > 0.85
    for volume in store.volumes:
        assert volume.astype(np.float32).mean() == pytest.approx(0, abs=1e-3)
        assert volume.astype(np.float32).std() == pytest.approx(1, abs=1e-3)
    both = np.corrcoef(store.volumes.reshape(2, -1).astype(np.float32))
    assert both[0, 1] > 0.9  # two poses of one brain
    with pytest.raises(UserError, match=r"sub-zero.*excluded\.tsv"):
        store.index_of("sub-zero")


def pack_into(cohort, folder, share=0.9, chunk_tables=None):
    pack(
        chunk_tables or tables(cohort),
        cohort / "excluded.tsv",
        folder / "volumes.npy",
        folder / "scans.tsv",
        max_excluded_share=share,
        size=40,
    )


def test_too_many_bad_scans_stop_the_run_with_the_list(cohort, tmp_path):
    with pytest.raises(UserError, match=r"7 of 9 .*6 at n4, 1 at skull_strip.*excluded\.tsv"):
        pack_into(cohort, tmp_path, share=0.75)
    assert not list(tmp_path.iterdir())
    pack_into(cohort, tmp_path, share=7 / 9)  # the share itself is allowed


def test_nothing_left_stops_the_run_whatever_the_share(cohort, tmp_path):
    rows = [row for row in read_tsv(tables(cohort)[0]) if row["status"] == "failed"]
    write_tsv(tmp_path / "resample.tsv", rows, steps.RESAMPLE_COLUMNS)
    with pytest.raises(UserError, match="3 of 3 scans"):
        pack_into(cohort, tmp_path, share=1.0, chunk_tables=[tmp_path / "resample.tsv"])
    assert not (tmp_path / "volumes.npy").exists()


def test_the_verbs_take_all_chunks_of_the_cohort_and_the_share(cohort, tmp_path, monkeypatch):
    (tmp_path / "results/cohorts").mkdir(parents=True)
    (tmp_path / "results/cohorts/C").symlink_to(cohort)
    monkeypatch.chdir(tmp_path)
    assert main(["list-excluded", "--cohort", "C", "--out", "excluded.tsv"]) == 0
    assert {excluded["subject"] for excluded in read_tsv(tmp_path / "excluded.tsv")} == set(BAD)
    files = ["--excluded", "excluded.tsv", "--volumes", "volumes.npy", "--scans", "stored.tsv"]
    for share, status in (("0.75", 1), ("0.8", 0)):
        assert (
            main(["pack", "--cohort", "C", "--size", "20", "--max-excluded-share", share, *files]) == status
        )
    assert [row["subject"] for row in read_tsv(tmp_path / "stored.tsv")] == ["also", "good"]
    assert np.load("volumes.npy", mmap_mode="r").shape == (2, 20, 20, 20)


def test_a_full_disk_is_noticed_before_packing(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="free some space"):
        pack_into(cohort, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vanished_derivative_is_named(cohort, tmp_path):
    kept = next(row for row in read_tsv(tables(cohort)[0]) if row["status"] == "ok")
    gone = kept | {"preproc": str(tmp_path / "gone.nii.gz")}
    write_tsv(tmp_path / "resample.tsv", [gone], steps.RESAMPLE_COLUMNS)
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        pack(
            [tmp_path / "resample.tsv"],
            cohort / "excluded.tsv",
            tmp_path / "volumes.npy",
            tmp_path / "scans.tsv",
            max_excluded_share=0,
        )
    assert not (tmp_path / "volumes.npy").exists()


def test_a_store_whose_files_disagree_is_refused(tmp_path):
    np.save(tmp_path / "volumes.npy", np.zeros((3, 4, 4, 4), np.float16))
    write_tsv(tmp_path / "scans.tsv", [{"scan_id": "sub-1"}], ("scan_id",))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path)


# -- what is a scan's fault and what is not --------------------------------------------------------


def one_step(tmp_path, error, capsys=None):
    def work(row):
        raise error

    rows = [
        {"scan_id": "sub-1", "status": "ok", "step": "n/a", "reason": "n/a"},
        {"scan_id": "sub-2", "status": "failed", "step": "n4", "reason": "bad"},
    ]
    steps._run("register", rows, work, tmp_path / "out.tsv", ("scan_id", "status", "step", "reason"))
    return read_tsv(tmp_path / "out.tsv")


def test_any_error_of_a_scan_is_its_reason_and_the_log_has_the_rest(tmp_path, capsys):
    done = one_step(tmp_path, ZeroDivisionError("first line\nsecond line"))
    assert done[0] == {
        "scan_id": "sub-1",
        "status": "failed",
        "step": "register",
        "reason": "ZeroDivisionError: first line",
    }
    assert done[1]["step"] == "n4"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.nii"), "out.nii: No space.*free space"),
        (FileNotFoundError(errno.ENOENT, "No such file", "n4/sub-1.nii"), "sub-1.nii: No such file"),
        (MemoryError(), "mem_mb"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "mem_mb"),
        (ModuleNotFoundError("No module named 'ants'"), "install"),
        (UserError("install hd-bet"), "install hd-bet"),
    ],
)
def test_what_is_no_scans_fault_stops_the_job(tmp_path, error, words):
    with pytest.raises(UserError, match=words):
        one_step(tmp_path, error)
    assert not (tmp_path / "out.tsv").exists()


IMPORTED = """
import os, sys
class Spy:
    def find_spec(self, name, *_):
        if name == "numpy":
            sys.exit(" ".join(os.environ.get(name, "?") for name in verbs.THREADS))
from neuropeft import verbs
sys.meta_path.insert(0, Spy())
getattr(verbs, sys.argv[1])(None)
"""


@pytest.mark.parametrize(
    "verb", ["n4", "skull_strip", "register", "resample", "pack", "preprocess", "synthesize"]
)
def test_what_makes_volumes_uses_one_thread_wherever_it_runs(verb):
    command = [sys.executable, "-c", IMPORTED, verb]
    said = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": WORKFLOW})
    assert said.stderr == "1 1 1 1\n"


@pytest.mark.parametrize("lost", ["scan", "mask"])
def test_a_disk_that_is_not_mounted_here_excludes_no_scan(tmp_path, lost):
    scan = brain_scan(voxel_mm=(4.0, 4.0, 4.0))
    paths = {name: tmp_path / f"disk-of-{name}" / "s.nii" for name in ("scan", "mask")}
    for name, path in paths.items():
        save(path, scan if name == "scan" else nib.Nifti1Image(brain_of(scan), scan.affine))
    write_tsv(tmp_path / "scans.tsv", [row("s", paths["scan"], mask=paths["mask"])], INDEX_COLUMNS)
    paths[lost].parent.rename(tmp_path / "not-mounted")
    with pytest.raises(UserError, match=rf"disk-of-{lost}/s.nii was there .* is mounted") as caught:
        run_chunk(tmp_path, "x0", method="given")
    assert not isinstance(caught.value, ScanError)


def test_an_interrupt_stops_the_job(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        one_step(tmp_path, KeyboardInterrupt())


def test_an_unknown_chunk_is_a_users_error(cohort, tmp_path):
    with pytest.raises(UserError, match="x9"):
        steps.run_n4(cohort / "scans.tsv", "x9", tmp_path / "n4", tmp_path / "n4.tsv")


# -- QC --------------------------------------------------------------------------------------------


def test_outliers_are_those_far_from_the_cohorts_median():
    rng = np.random.default_rng(0)
    numbers = {
        "mask_ml": [*rng.normal(1500, 80, 30), 2100],
        "template_correlation": [*rng.normal(0.6, 0.01, 29), 0.45, 0.75],
        "rotation_deg": [*rng.normal(8, 3, 30), 60],
        "shear": [1e-17 * index for index in range(31)],
    }
    scores = outlier_scores(numbers)
    assert {name: list(np.nonzero(score > 3.5)[0]) for name, score in scores.items()} == {
        "mask_ml": [30],
        "template_correlation": [29],  # a good fit is no outlier
        "rotation_deg": [30],
        "shear": [],
    }
    assert scores["rotation_deg"][30] == np.inf


def test_a_small_cohort_has_only_implausible_numbers():
    scores = outlier_scores({"mask_ml": [1500, 1501, 1502, 1900], "scale_x": [0.9, 0.9, 0.91, 1.5]})
    assert list(scores["mask_ml"]) == [0, 0, 0, 0]
    assert list(scores["scale_x"]) == [0, 0, 0, np.inf]


SPOT = (25, 66, 50)  # template voxel, left of the midline and in two of the slices shown


@pytest.fixture(scope="module")
def qc(cohort, tmp_path_factory):
    """A QC page of a cohort of 20 scans, two of which stand out, and one that failed; with its figures.

    The scan that stands out most has a bright spot.
    """
    folder = tmp_path_factory.mktemp("qc")
    rows = read_tsv(tables(cohort)[1])
    good = next(row for row in rows if row["status"] == "ok")
    bad = next(row for row in rows if row["subject"] == "zero")
    bad |= {"mask": "/data/masks/m.nii", "reason": f"{bad['reason']}; the mask /data/masks/m.nii is n/a"}
    spotted = np.asarray(mni152_brain().dataobj).copy()
    spotted[tuple(slice(at - 2, at + 3) for at in SPOT)] = 3
    path = str(save(folder / "spotted.nii.gz", nib.Nifti1Image(spotted, AFFINE)))
    many = [good | {"scan_id": f"sub-{index:02}", "mask_ml": str(1400 + index)} for index in range(20)]
    many[3] |= {"mask_ml": "2900", "preproc": path}  # implausible
    many[5] |= {"mask_ml": "2000"}  # far from the others
    write_tsv(folder / "resample.tsv", [*many, bad], steps.RESAMPLE_COLUMNS)
    figures = []
    savefig = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        write_qc([folder / "resample.tsv"], folder / "qc.tsv", folder / "index.html", "A<b> (simulated)")
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
        written: {"sub-03", "sub-05"} if name == "mask_ml" else set()
        for name, (written, _) in NUMBERS.items()
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


def test_a_cohort_without_any_good_scan_has_a_page_too(cohort, tmp_path):
    rows = [row for row in read_tsv(tables(cohort)[1]) if row["status"] == "failed"]
    write_tsv(tmp_path / "resample.tsv", rows, steps.RESAMPLE_COLUMNS)
    write_qc([tmp_path / "resample.tsv"], tmp_path / "qc.tsv", tmp_path / "index.html", "A")
    assert "0 scans preprocessed" in (tmp_path / "index.html").read_text()
