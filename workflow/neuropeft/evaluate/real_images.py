"""The control of a task that draws images: in place of each one, a training image that was drawn by lot.

Real against real: what a Frechet distance between as many images is where both are real, how well any image
agrees with any text, and what it is to be copied.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from neuropeft import layout
from neuropeft.cohorts.splits import TEST, TRAIN, read_split, take_subset
from neuropeft.evaluate.described import read_described, write_scores
from neuropeft.files import read_tsv, write_tsv
from neuropeft.split_names import seed_and_fold
from neuropeft.subsets import Subset
from neuropeft.tasks.base import COLUMNS, CONTROL_METHOD
from neuropeft.tasks.generation import Generation
from neuropeft.train.seeds import derive_seed


def write_controls(
    kind: Generation,
    methods: Sequence[str],
    targets: Sequence[str],
    split: Path,
    subsets: Sequence[Subset],
    cohorts: Sequence[str],
    out: Path,
) -> None:
    """Write the control of each subset of a split; see `controls.write_controls`."""
    results, task, home = split.parents[2], split.parent.name, cohorts[0]
    real, sides = read_described(layout.DESCRIBED.at(results, task=task)), read_split(split)
    known, (seed, fold) = real.places, seed_and_fold(split)
    labels = {row["scan_id"]: row for row in read_tsv(layout.LABELS.at(results, task=task, cohort=home))}
    tested = [labels[row["scan_id"]] for row in sides if row["side"] == TEST and row["scan_id"] in known]
    table, found = out / f"{home}.tsv", []
    for subset in subsets:
        learnt = [row["scan_id"] for row in take_subset(sides, subset, kind, TRAIN, task)]
        train = [scan for scan in learnt if scan in known]
        lots = random.Random(derive_seed(seed, "real images")).sample(train, len(train))
        taken = real.of([lots[place % len(lots)] for place in range(len(tested))])
        folder = layout.predicted_files(table, str(subset), split.stem)
        of_texts = real.of([row["scan_id"] for row in tested])
        scores = write_scores(folder, kind, of_texts, real.of(train), taken.features, taken.pictures)
        run = {CONTROL_METHOD: methods[0], "subset": str(subset), "seed": seed, "fold": fold, "split": TEST}
        found += [
            {**row, **run, **dict(zip(kind.score_columns, values, strict=True))}
            for row, values in zip(tested, scores, strict=True)
        ]
    write_tsv(table, found, [CONTROL_METHOD, *COLUMNS, *kind.score_columns])
