"""How splits are called: `seed-0`, or, where subjects are dealt into folds, `seed-0_fold-2`."""

import re
from pathlib import Path

from neuropeft.errors import UserError

FOLD_PART = r"(/fold-\d+)?"  # of a path: the folder of a fold, or nothing where one serves all folds
SPLIT_PATTERN = r"seed-\d+(_fold-\d+)?"  # of Snakemake's wildcard, too


def split_name(seed: int, fold: int) -> str:
    """Return the name of a split, which is that of its file without `.tsv`; fold 0 is the fixed test side."""
    return f"seed-{seed}_fold-{fold}" if fold else f"seed-{seed}"


def seed_and_fold(split: str | Path) -> tuple[int, int]:
    """Return the seed and the fold (0 for the fixed test side) that the name of a split's file tells.

    Raises:
        UserError: It tells none.
    """
    name = Path(split).stem
    if not re.fullmatch(SPLIT_PATTERN, name):
        raise UserError(
            f"the name of the split {split} does not tell its seed; call it seed-<number>.tsv or "
            "seed-<number>_fold-<number>.tsv"
        )
    seed, _, fold = name.removeprefix("seed-").partition("_fold-")
    return int(seed), int(fold or 0)


def fold_part(fold: int) -> str:
    """Return the part of a path that names a fold; nothing for 0."""
    return f"/fold-{fold}" if fold else ""


def fold_in(part: str) -> int:
    """Return the fold that a part of a path names, as `fold_part` writes it."""
    return int(part.removeprefix("/fold-") or 0)
