"""What holds for every kind of input, and how steps, stores and QC treat good and bad scans of any kind."""

import errno
import hashlib
import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from kinds import INPUTS, SIZE
from neuropeft.config import Cohort
from neuropeft.errors import UserError
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs import MODULES, input_kind, step_of
from neuropeft.inputs.base import Folders, Step
from neuropeft.inputs.io import ScanError
from neuropeft.inputs.steps import SCAN_COLUMNS, run_step
from neuropeft.inputs.store import list_excluded, pack
from neuropeft.store import SIGNATURES, open_store
from scans import index_row, run_chunk, write_index

WORKFLOW = Path(__file__).parents[1] / "workflow"
GENERAL = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable"),
    "text": (lambda path: path.write_bytes(b"not an image" * 100), "is not"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
}
# Takes a cohort from its index to the QC page, by the verbs, as jobs do.
PIPELINE = """
import json, sys
from neuropeft.cli import main
kind, chunk, settings, size, *steps = sys.argv[1:]
folder, rows = f"results/cohorts/C/chunks/{chunk}", ["results/cohorts/C/scans.tsv", "--chunk", chunk]
for step in steps:
    name, module = step.split("=")
    table = f"{folder}/{name}.tsv"
    given = ["--temporary", f"{folder}/n4", "--derivatives", "results/derivatives", "--settings", settings]
    assert main(["prepare", "--step", module, "--rows", *rows, *given, "--table", table]) == 0
    rows = [table]
whole = ["--cohort", "C", "--last-step", name]
assert main(["list-excluded", *whole, "--out", "excluded.tsv"]) == 0
whole += ["--input", kind]
out = ["--volumes", "store/volumes.npy", "--scans", "store/scans.tsv", "--excluded", "excluded.tsv"]
assert main(["pack", *whole, "--size", size, "--max-excluded-share", "0.9", *out]) == 0
assert main(["qc", *whole, "--table", "qc.tsv", "--page", "index.html"]) == 0
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow if kind == "t1w" else ()) for kind in INPUTS],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def steps(name):
    return Cohort(table="t", input=name).input.steps


def bad_files(name):
    return GENERAL | dict(INPUTS[name].bad)


def prepared(name, steps, root, rows, threads):
    """Take a cohort of these scans through everything, in a process that is told a number of threads."""
    write_index(root / "results/cohorts/C", rows)
    given = [
        name,
        "x0",
        json.dumps(INPUTS[name].settings),
        SIZE,
        *(f"{step}={at}" for step, at in steps.items()),
    ]
    many = dict.fromkeys(("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, *map(str, given)],
        cwd=root,
        env={"PYTHONPATH": str(WORKFLOW), "PATH": "/usr/bin:/bin", **many},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def cohort(name, steps, tmp_path_factory):
    """A cohort of two good scans and one of every bad sort, prepared, packed and drawn."""
    root, files = tmp_path_factory.mktemp("cohort"), INPUTS[name]
    rows = []
    for number, subject in enumerate(("good", "also", *bad_files(name))):
        path = root / f"{subject}{files.suffix}"
        files.write(path, min(number, 1))
        if subject in bad_files(name):
            bad_files(name)[subject][0](path)
        rows.append(index_row(subject, path))
    return prepared(name, steps, root, rows, threads=1)


def test_it_is_found_by_its_name(name, steps):
    assert set(INPUTS) == set(MODULES)
    kind = input_kind(name)
    assert kind.fit in kind.numbers
    assert [step_of(module).name for module in steps.values()] == list(steps)
    with pytest.raises(UserError, match="t1w"):
        input_kind("t2w")


def test_good_scans_become_arrays_in_order(name, cohort):
    store = open_store(cohort / "store")
    assert store.scan_ids == ["sub-also", "sub-good"]
    assert store.volumes.shape == (2, *Cohort(table="t", input=name).input.shape(SIZE))
    assert store.volumes.dtype == np.float16
    assert isinstance(store.volumes, np.memmap)
    assert np.isfinite(store.volumes).all()
    assert [row["row"] for row in store.rows] == ["0", "1"]
    assert [row["sha1"] for row in store.rows] == [
        hashlib.sha1(array.tobytes()).hexdigest() for array in store.volumes
    ]
    assert len({row["raw_sha1"] for row in store.rows}) == 2
    for column in input_kind(name).numbers:
        assert np.isfinite([float(row[column]) for row in store.rows]).all()
    signatures = np.load(cohort / "store" / SIGNATURES)
    np.testing.assert_allclose((signatures**2).sum(axis=1), 1, atol=1e-5)
    assert signatures[0] @ signatures[1] < 1 - 1e-4
    with pytest.raises(UserError, match=r"sub-zero.*excluded\.tsv"):
        store.index_of("sub-zero")


def test_bad_files_are_rows_with_their_reasons_from_the_step_that_refused_them_on(name, steps, cohort):
    bad = bad_files(name)
    excluded = {row["subject"]: row for row in read_tsv(cohort / "excluded.tsv")}
    assert set(excluded) == set(bad)
    for subject, (_, words) in bad.items():
        assert excluded[subject]["step"] == next(iter(steps))
        assert words in excluded[subject]["reason"]
    columns = SCAN_COLUMNS
    for step, module in steps.items():
        rows = read_tsv(cohort / f"results/cohorts/C/chunks/x0/{step}.tsv")
        columns = (*columns, *step_of(module).adds)
        assert tuple(rows[0]) == columns
        assert {row["subject"]: row["reason"] for row in rows if row["status"] == "failed"} == {
            subject: row["reason"] for subject, row in excluded.items()
        }


def test_its_qc_page_shows_good_scans_and_names_the_others(name, cohort):
    assert [row["scan_id"] for row in read_tsv(cohort / "qc.tsv")] == ["sub-also", "sub-good"]
    page = (cohort / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2  # distributions and scans
    assert all(f"sub-{subject}" in page for subject in bad_files(name))
    assert str(cohort) not in page


@pytest.mark.slow
def test_the_same_scan_becomes_the_same_bytes_again_whatever_the_threads(name, steps, cohort, tmp_path):
    again = prepared(name, steps, tmp_path, [index_row("good", cohort / f"good{INPUTS[name].suffix}")], 3)
    one, other = open_store(cohort / "store"), open_store(again / "store")
    assert one.rows[1] | {"row": "0"} == other.rows[0]
    assert np.array_equal(one.volumes[1:], other.volumes)


def test_a_disk_that_fails_stops_the_job_and_excludes_no_scan(name, tmp_path):
    path = tmp_path / f"s{INPUTS[name].suffix}"
    path.symlink_to("/proc/self/mem")  # whose first byte cannot be read: EIO
    write_index(tmp_path, [index_row("s", path)])
    with pytest.raises(UserError, match=r"Input/output error .*run again") as caught:
        run_chunk(tmp_path, "x0", INPUTS[name].settings, name)
    assert not isinstance(caught.value, ScanError)


def test_a_disk_that_is_not_mounted_here_stops_the_job(name, tmp_path):
    path = tmp_path / f"s{INPUTS[name].suffix}"
    write_index(tmp_path, [index_row("s", path) | {"size": 7}])
    with pytest.raises(UserError, match=r"was there .* is mounted") as caught:
        run_chunk(tmp_path, "x0", INPUTS[name].settings, name)
    assert not isinstance(caught.value, ScanError)


# -- a step over a chunk ---------------------------------------------------------------------------


def one_step(folder, error):
    def work(row, folders, settings):
        raise error

    good = {"scan_id": "sub-1", "status": "ok", "step": "n/a", "reason": "n/a"}
    bad = {"scan_id": "sub-2", "status": "failed", "step": "before", "reason": "bad"}
    write_tsv(folder / "in.tsv", [good, bad], list(good))
    folders = Folders(folder)
    run_step(Step("this", work), folder / "in.tsv", None, folders, {}, folder / "out.tsv")
    return read_tsv(folder / "out.tsv")


def test_any_error_of_a_scan_is_its_reason_and_the_log_has_the_rest(tmp_path, capsys):
    one, other = one_step(tmp_path, ZeroDivisionError("first line\nsecond line"))
    failed = {"status": "failed", "step": "this", "reason": "ZeroDivisionError: first line"}
    assert one == {"scan_id": "sub-1", **failed}
    assert other["step"] == "before"
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


def test_an_interrupt_stops_the_job(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        one_step(tmp_path, KeyboardInterrupt())


def test_an_unknown_chunk_is_a_users_error(tmp_path):
    write_index(tmp_path, [index_row("s", tmp_path / "s.nii")])
    with pytest.raises(UserError, match="x9"):
        run_chunk(tmp_path, "x9", {})


# -- the store -------------------------------------------------------------------------------------


def packed(cohort, steps, name, out, share, rows=None):
    """Pack the scans of a prepared cohort into `out`."""
    table = cohort / f"results/cohorts/C/chunks/x0/{list(steps)[-1]}.tsv"
    rows = rows or read_tsv(table)
    write_tsv(out / "last.tsv", rows, list(rows[0]))
    files = (out / "volumes.npy", out / "scans.tsv")
    with chdir(cohort):
        pack(
            input_kind(name), [out / "last.tsv"], "excluded.tsv", *files, max_excluded_share=share, size=SIZE
        )


def test_too_many_bad_scans_stop_the_run_with_the_list(name, steps, cohort, tmp_path):
    bad = len(bad_files(name))
    told = rf"{bad} of {bad + 2} .*{bad} at {next(iter(steps))}.*excluded\.tsv"
    with pytest.raises(UserError, match=told):
        packed(cohort, steps, name, tmp_path, share=0.75)
    assert not (tmp_path / "volumes.npy").exists()
    packed(cohort, steps, name, tmp_path, share=bad / (bad + 2))  # the share itself is allowed


def test_nothing_left_stops_the_run_whatever_the_share(name, steps, cohort, tmp_path):
    table = cohort / f"results/cohorts/C/chunks/x0/{list(steps)[-1]}.tsv"
    failed = [row for row in read_tsv(table) if row["status"] == "failed"]
    with pytest.raises(UserError, match=f"{len(failed)} of {len(failed)} scans"):
        packed(cohort, steps, name, tmp_path, share=1.0, rows=failed)


def test_the_list_takes_all_chunks(tmp_path):
    row = {"scan_id": "b", "status": "failed", "step": "n4", "reason": "r"}
    for chunk, scan in (("x0", "b"), ("x1", "a")):
        write_tsv(tmp_path / f"{chunk}.tsv", [row | {"scan_id": scan}, row | {"status": "ok"}], list(row))
    list_excluded([tmp_path / "x0.tsv", tmp_path / "x1.tsv"], tmp_path / "out.tsv")
    assert [row["scan_id"] for row in read_tsv(tmp_path / "out.tsv")] == ["a", "b"]


def test_a_full_disk_is_noticed_before_packing(name, steps, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="free some space"):
        packed(cohort, steps, name, tmp_path, share=0.9)
    assert not (tmp_path / "volumes.npy").exists()


def test_a_store_whose_files_disagree_is_refused(tmp_path):
    np.save(tmp_path / "volumes.npy", np.zeros((3, 1, 4, 4, 4), np.float16))
    write_tsv(tmp_path / "scans.tsv", [{"scan_id": "sub-1"}], ("scan_id",))
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path)


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


@pytest.mark.parametrize("verb", ["prepare", "pack", "preprocess", "synthesize"])
def test_what_makes_volumes_uses_one_thread_wherever_it_runs(verb):
    command = [sys.executable, "-c", IMPORTED, verb]
    said = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": WORKFLOW})
    assert said.stderr == "1 1 1 1\n"
