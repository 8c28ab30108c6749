"""How long indexing, packing, splitting and the leak checks take at the size of UK Biobank.

    python benchmarks/scale.py [--scans 40000]

In a temporary folder it makes a BIDS cohort of empty scans and its store of small volumes, 16³ of noise, and
runs each stage as the workflow does. Both leak checks compare every scan with every other side.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from neuropeft.cohorts.index import index_cohort, write_index
from neuropeft.cohorts.leaks import check_leaks, check_pretraining
from neuropeft.cohorts.splits import make_split, write_split
from neuropeft.config import Cohort
from neuropeft.config.inputs import T1w
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs.store import write_volumes
from neuropeft.inputs.t1w.kind import KIND
from neuropeft.tasks import task_kind

SIZE = 16


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Print how long a stage took, and for how much of it processors worked, whoever else uses them."""
    started, worked = time.monotonic(), time.process_time()
    yield
    wall, worked = time.monotonic() - started, time.process_time() - worked
    print(f"{stage:24}{wall:8.1f} s {worked:8.1f} s of processors", flush=True)


def make_cohort(root: Path, scans: int) -> None:
    """Write empty T1w scans in the folders of a BIDS root."""
    for number in range(scans):
        anat = root / f"sub-{number:05d}/anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{number:05d}_T1w.nii.gz").touch()


def make_store(folder: Path, rows: list[dict[str, str]], seed: int) -> Path:
    """Write a store of noise; return its table."""
    random = np.random.default_rng(seed)
    cubes = (random.standard_normal((1, *(SIZE,) * 3)) for _ in rows)
    hashes = write_volumes(folder / "volumes.npy", cubes, len(rows), KIND.signature)
    stored = [
        {**row, "row": number, "sha1": digest, "raw_sha1": f"{seed}{digest}"}
        for number, (row, digest) in enumerate(zip(rows, hashes, strict=True))
    ]
    write_tsv(folder / "scans.tsv", stored, ("row", "scan_id", "subject", "session", "sha1", "raw_sha1"))
    return folder / "scans.tsv"


def main() -> None:
    """Time each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=40_000)
    scans = parser.parse_args().scans
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_cohort(folder / "raw", scans)
        index = folder / "index.tsv"
        with timed("index"):
            write_index(index, index_cohort("C", Cohort(bids=str(folder / "raw")), 32))
        rows = read_tsv(index)
        stores = [folder / f"cohorts/{cohort}/store" for cohort in "CP"]
        with timed("pack and hash"):
            stored = make_store(stores[0], rows, 0)
        pretrained = make_store(stores[1], rows, 1)
        split, labels = folder / "seed-0.tsv", folder / "labels.tsv"
        labelled = [{**row, "y": i % 2, "sex": "FM"[i // 2 % 2]} for i, row in enumerate(rows)]
        write_tsv(labels, labelled, ("scan_id", "subject", "session", "y", "sex"))
        with timed("split"):
            write_split(split, make_split(labelled, 0, 0.2, 0.1, task_kind("binary", 2), "t"))
        with timed("leaks, zero-shot"):
            check_leaks(split, stored, labels, pretrained, folder / "leaks.tsv", T1w.same)
        with timed("leaks, pretraining"):
            check_pretraining(labels, stored, pretrained, [], folder / "pretraining.tsv", T1w.same)


if __name__ == "__main__":
    main()
