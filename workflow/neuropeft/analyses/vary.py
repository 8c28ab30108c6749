"""Predict a cohort with variants of trained cells: nothing is trained."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuropeft.analyses.interpolate import interpolated
from neuropeft.analyses.perturb import Perturbed
from neuropeft.cohorts.splits import VALIDATION, first_rows
from neuropeft.files import write_tsv
from neuropeft.tasks.base import CONTROL_METHOD
from neuropeft.train.choices import with_choice
from neuropeft.train.predict import CellShown, columns_of
from neuropeft.variant_names import INTERPOLATION, change_of

MERGED_ON = 2  # scans that tell whether a method merges


def vary(
    analysis: str,
    names: Sequence[str],
    cells: Iterable[CellShown],
    out_tsv: str | Path,
) -> None:
    """Write what variants of every cell predict, a row per variant and subject, its first scan.

    Args:
        analysis: one of `VARIED`; scans are changed of the test side alone.
        names: of the variants, see `variant_names`.
        cells: one or more that share a base, see `train.predict.cells_shown`.
        out_tsv: the table to write: `method`, the name of the variant, beside the columns of predictions.
            It has no rows of methods that cannot be varied.
    """
    variants = _interpolated if analysis == INTERPOLATION else _perturbed
    table: list[dict[str, Any]] = []
    for cell in cells:
        for name, variant in variants(first_scans(cell), names):
            table += [{CONTROL_METHOD: name, **row} for row in variant.predictions()]
    if not table:
        print(f"{cell.spec['method']['kind']} merges into no plain network, so that nothing lies between")
    write_tsv(out_tsv, table, [CONTROL_METHOD, *columns_of(cell.spec)])


def first_scans(cell: CellShown) -> CellShown:
    """Return a cell with the scans that count in scores."""
    sides: dict[str, list[Mapping[str, Any]]] = {}
    for row in cell.rows:
        sides.setdefault(row["split"], []).append(row)
    first = {row["scan_id"] for side in sides.values() for row in first_rows(side).values()}
    return cell.only(lambda row: row["scan_id"] in first)


def _interpolated(cell: CellShown, names: Sequence[str]) -> Iterator[tuple[str, CellShown]]:
    assert cell.encoder is not None, "see `variants`"
    spec = with_choice(cell.spec, json.loads(cell.metadata["choice"]))
    scans = cell.shown.volumes.batch(cell.shown.places[:MERGED_ON])
    networks = interpolated(cell.model, spec, cell.encoder, [float(name) for name in names], scans)
    for name, network in zip(names, networks, strict=False):
        yield name, cell._replace(model=network)


def _perturbed(cell: CellShown, names: Sequence[str]) -> Iterator[tuple[str, CellShown]]:
    tested = cell.only(lambda row: row["split"] != VALIDATION)
    volumes, places = tested.shown.volumes, tested.shown.places
    scans = [""] * len(volumes)
    for place, scan in zip(places.tolist(), tested.shown.scans, strict=True):
        scans[place] = scan
    for name in names:
        kind, strength = change_of(name)
        changed = Perturbed(
            volumes.data, volumes.device, volumes.index, kind=kind, strength=strength, scans=tuple(scans)
        )
        yield name, tested._replace(shown=tested.shown._replace(volumes=changed))
