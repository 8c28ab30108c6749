"""What a search consists of: the trials of each method, a few in each job, and the choice among them."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from neuropeft import grid, layout
from neuropeft.config import Config
from neuropeft.config.search import Search
from neuropeft.grid import Cell, base_of
from neuropeft.grouping import grouped
from neuropeft.split_names import fold_in, fold_part


class Searched(NamedTuple):
    """What one choice is made for; `fold` is that of the encoder, 0 if all folds start from the same."""

    task: str
    backbone: str
    pretraining: str
    method: str
    fold: int = 0

    @property
    def names(self) -> dict[str, str]:
        """What places of `layout` call it by."""
        return {**self._asdict(), "fold_part": fold_part(self.fold)}


class Searches:
    """The search of a configuration whose run table holds some cells; wildcards are those of its rules."""

    def __init__(self, config: Config, cells: Sequence[Cell]) -> None:
        """Look at nothing yet."""
        self.config, self.table = config, cells

    @property
    def search(self) -> Search:
        """What is tried."""
        assert self.config.training.search is not None, "a rule of a search asks"
        return self.config.training.search

    @cached_property
    def of_choice(self) -> dict[Searched, list[Cell]]:
        """The cells that each choice is made for; nothing without a search."""
        table = self.table if self.config.training.search else ()
        return grouped(table, lambda cell: Searched(*cell.base, grid.encoder_fold(self.config, cell)))

    def all(self) -> list[Searched]:
        """Return every base and fold that has trials of its own; none without a search."""
        return list(self.of_choice)

    def named(self, wildcards: Any) -> Searched:
        """Return the one that the wildcards of a rule name."""
        return Searched(*base_of(wildcards), fold_in(wildcards.fold_part))

    def cells(self, one: Searched) -> list[Cell]:
        """Return the cells that its trials are made of: one of each fold."""
        return grid.searched(self.of_choice[one])

    def cells_of(self, wildcards: Any) -> list[Cell]:
        """Return the cells that the trials of a job are made of."""
        return self.cells(self.named(wildcards))

    def splits(self, wildcards: Any) -> list[str]:
        """Return the names of their splits."""
        return grid.splits_of(self.cells_of(wildcards))

    def firsts(self, one: Searched) -> range:
        """Return the number of the first trial of each of its jobs."""
        return self.search.firsts(self.config.methods[one.method].model_dump())

    def trials(self, one: Searched, firsts: Iterable[int] | None = None) -> list[str]:
        """Return its tables of trials, all of them or those that begin with some numbers."""
        numbers = self.firsts(one) if firsts is None else firsts
        return [layout.TRIALS.of(**one.names, first=first) for first in numbers]

    def earlier(self, wildcards: Any) -> list[str]:
        """Return the tables that must be there before some trials: none where chance alone draws them."""
        if self.search.sampler != "tpe":
            return []
        one = self.named(wildcards)
        return self.trials(one, (first for first in self.firsts(one) if first < int(wildcards.first)))

    def trained(self, wildcards: Any) -> float:
        """Return how many whole cells the trials of a job are worth."""
        one = self.named(wildcards)
        method = self.config.methods[one.method].model_dump()
        number = min(self.search.trials_per_job, self.search.count(method) - int(wildcards.first))
        return number * self.search.share * len(self.cells(one))

    def settings(self) -> str:
        """Return the settings of the search, as canonical JSON."""
        return self.search.model_dump_json()

    def files(self) -> list[str]:
        """Return all choices and trials, which a table shows."""
        some = self.all()
        trials = [table for one in some for table in self.trials(one)]
        return [*(layout.CHOICES.of(**one.names) for one in some), *trials]
