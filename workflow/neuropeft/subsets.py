"""How much of the training subjects a cell learns from: a percentage, or some subjects of each class."""

import re
from typing import NamedTuple

from neuropeft.errors import UserError

SUBSET_PATTERN = r"(?:fraction|shots)-\d+"  # of Snakemake's wildcard, too


class Subset(NamedTuple):
    """A part of the training subjects. Shots come before fractions, smaller before larger."""

    # whether `size` is a percentage of all subjects; otherwise it is a number of subjects of each stratum
    # (shots)
    of_all: bool
    size: int  # 1 to 100 percent, or how many shots

    def __str__(self) -> str:
        """Return its name in paths, tables and on command lines: `fraction-25` or `shots-5`."""
        return f"{'fraction' if self.of_all else 'shots'}-{self.size}"

    @classmethod
    def parse(cls, text: str) -> "Subset":
        """Return the subset of a name.

        Raises:
            UserError: it is no such name.
        """
        if not re.fullmatch(SUBSET_PATTERN, text):
            raise UserError(f"{text!r} is no subset: write fraction-<percent> or shots-<number>")
        kind, _, size = text.partition("-")
        return cls(kind == "fraction", int(size))

    @property
    def label(self) -> str:
        """What figures call it: `25 %` or `5 shots`."""
        if self.of_all:
            return f"{self.size} %"
        return f"{self.size} shot" if self.size == 1 else f"{self.size} shots"

    @property
    def text(self) -> str:
        """What it is, in a sentence."""
        if self.of_all:
            return f"{self.size} % of the training subjects"
        return f"{self.label} of each class"


def fraction(percent: int) -> Subset:
    """Return a percentage of the training subjects."""
    return Subset(True, percent)


def shots(number: int) -> Subset:
    """Return some training subjects of each stratum."""
    return Subset(False, number)


WHOLE = fraction(100)
