"""The control of a segmentation: the mean label map, what is found without looking at a scan.

The share of training subjects who have a region in a voxel of the store's grid stands for its probability,
so that most of them decide. It is brought to the grid of each scan and compared there as predictions are.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import TEST, TRAIN, ZERO_SHOT, read_split, take_subset
from neuropeft.files import read_tsv, write_tsv
from neuropeft.inputs import input_kind
from neuropeft.split_names import seed_and_fold
from neuropeft.store import Store, open_store
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS, CONTROL_METHOD, Array
from neuropeft.tasks.segmentation import Segmentation
from neuropeft.train.labels import Row, subject_weights

LESS = 1 - 1e-5  # so that it is the background where that is as frequent as a region, whatever is rounded


def write_mean_label_maps(
    kind: Segmentation,
    method: str,
    split: Path,
    subsets: Sequence[Subset],
    cohorts: Sequence[str],
    out: Path,
) -> None:
    """Make the mean label map of each subset of a split; compare it with those of test and zero-shot scans.

    Arguments are those of `controls.write_controls`, of a single method.
    """
    results, task, sides = split.parents[2], split.parent.name, read_split(split)
    stores = {cohort: open_store(layout.STORE.at(results, cohort=cohort)) for cohort in cohorts}
    home, *others = cohorts
    tested = {home: [row for row in sides if row["side"] == TEST]}
    tested |= {name: read_tsv(layout.LABELS.at(results, task=task, cohort=name)) for name in others}
    run = dict(zip(("seed", "fold"), seed_and_fold(split), strict=True))
    for cohort, store in stores.items():
        found = []
        for subset in subsets:
            train = _stored(take_subset(sides, subset, kind, TRAIN, task), stores[home])
            shares = _shares(kind, stores[home], train)
            found += [
                {
                    **{CONTROL_METHOD: method, "subset": str(subset), **run},
                    "split": TEST if cohort == home else ZERO_SHOT,
                    **{name: row[name] for name in ("scan_id", "subject", "y")},
                    "session": store.rows[store.index_of(row["scan_id"])]["session"],
                    **dict(zip(kind.score_columns, _compared(kind, store, row, shares), strict=True)),
                }
                for row in _stored(tested[cohort], store)
            ]
        write_tsv(out / f"{cohort}.tsv", found, [CONTROL_METHOD, *COLUMNS, *kind.score_columns])


def _stored(rows: Sequence[Row], store: Store) -> list[Row]:
    there = set(store.scan_ids)
    return [row for row in rows if row["scan_id"] in there]


def _shares(kind: Segmentation, store: Store, rows: Sequence[Row]) -> Array:
    """Return the share of subjects with each region in each voxel, float32 [regions, *size], times LESS."""
    shares = np.zeros((kind.size, *store.labels.shape[1:]))
    for row, weight in zip(rows, subject_weights(rows), strict=True):
        labels = store.labels[store.index_of(row["y"])]
        for region, values in zip(shares, kind.regions.values(), strict=True):
            region += (weight / len(rows)) * np.isin(labels, values)
    return (shares * LESS).astype(np.float32)


def _compared(kind: Segmentation, store: Store, row: Row, shares: Array) -> list[float]:
    stored = store.rows[store.index_of(row["scan_id"])]
    own = input_kind(stored["input"]).to_own_grid(stored, shares)
    return kind.compared(kind.label_map(own.maps), own.labels, own.voxel_mm)
