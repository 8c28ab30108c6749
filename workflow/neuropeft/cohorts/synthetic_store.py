"""The store of a synthetic cohort: its volumes, their tissue, and the numbers that they were painted from."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from neuropeft.cohorts.synthetic import FACTORS, MAPS, Person, people, rounded
from neuropeft.cohorts.synthetic_brain import CELLS, load_template, paint
from neuropeft.files import atomic_path, write_tsv
from neuropeft.inputs.store import write_volumes
from neuropeft.inputs.t1w.kind import KIND
from neuropeft.inputs.t1w.resample import to_model_grid
from neuropeft.progress import track

COLUMNS = ("row", "scan_id", "subject", "session", *FACTORS, "sha1")

Painted = tuple[np.ndarray, np.ndarray, dict[str, float]]  # cube, maps, measured anatomy


def write_synthetic(volumes: int, seed: int, size: int, out: str | Path, processes: int) -> None:
    """Write the store of a synthetic cohort; the number of processes changes no byte.

    Args:
        volumes: how many brains.
        seed: of the cohort.
        size: edge of the cube that models see, in voxels.
        out: folder to write: `volumes.npy`, float16 [volumes, 1, size, size, size], z-scored; `MAPS`, float16
            [volumes, 3, 10, 10, 10] each, see `synthetic_brain.Brain`; `scans.tsv`, a row per
            volume with `synthetic.FACTORS` and the SHA-1 of its bytes.
        processes: how many paint at a time.

    Raises:
        UserError: the disk is too small.
    """
    out = Path(out)
    persons = people(volumes, seed)
    maps = np.empty((len(MAPS), volumes, 3, CELLS, CELLS, CELLS), "<f2")
    rows: list[dict[str, object]] = []

    def cubes() -> Iterator[np.ndarray]:
        painted = track(_paint_all(persons, size, processes), volumes, "painting")
        for person, (cube, drawn, measured) in zip(persons, painted, strict=True):
            maps[:, len(rows)] = drawn
            factors = rounded({**person.factors, **measured})
            rows.append({"row": len(rows), "scan_id": person.scan_id, "subject": person.subject, **factors})
            yield cube[None]

    hashes = write_volumes(out / "volumes.npy", cubes(), volumes, KIND.signature)
    for name, values in zip(MAPS, maps, strict=True):
        with atomic_path(out / name) as partial_file:
            np.save(partial_file, values)
    stored = [{**row, "sha1": digest} for row, digest in zip(rows, hashes, strict=True)]
    write_tsv(out / "scans.tsv", stored, COLUMNS)


def _paint_all(persons: Sequence[Person], size: int, processes: int) -> Iterator[Painted]:
    load_template()  # before the processes part, which then share it
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        yield from pool.map(partial(_paint, size=size), persons, chunksize=4)


def _paint(person: Person, size: int) -> Painted:
    brain = paint(person)
    return (
        to_model_grid(brain.image, size).astype(np.float16),
        np.stack([brain.tissue, brain.displacement]),
        brain.measured,
    )
