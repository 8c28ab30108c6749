"""Predictions of methods with who was predicted: for calibration, subgroups and brain age."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from neuropeft import layout
from neuropeft.cohorts.splits import TRAIN, first_rows, read_split, take_subset
from neuropeft.config import Config
from neuropeft.contenders import Contender, contenders, score_spec, scored_together
from neuropeft.evaluate.score import Source, entries, prediction_file
from neuropeft.evaluate.tested import Tested
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import cells, subsets_of
from neuropeft.split_names import split_name
from neuropeft.subsets import Subset
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Run, TaskKind

Change = Callable[[Run, Run], Run]  # (validation, test) -> test, as validation would have it changed


@dataclass(frozen=True)
class Person:
    """A subject: age in years (NaN where unknown), sex and site (empty where unknown)."""

    age: float = math.nan
    sex: str = ""
    site: str = ""


@dataclass(frozen=True)
class Predicted:
    """A method's predictions on a cohort, of all its seeds."""

    contender: Contender  # the method, with the largest subset of its task
    cohort: str  # who was tested on
    kind: TaskKind  # what was predicted
    runs: dict[int, dict[int, tuple[Run, Run]]]  # (validation, test) predictions by seed and fold
    source: Source  # how the folds of a seed are put together

    def tested(self, change: Change | None = None) -> list[Tested]:
        """Return what is scored of every seed (see `Source.scored`), changed before folds are pooled."""
        return [
            one
            for of_seed in self.runs.values()
            for one in self.source.scored(
                self.cohort,
                {
                    fold: (validation, change(validation, run) if change else run)
                    for fold, (validation, run) in of_seed.items()
                },
            )
        ]

    @property
    def zero_shot(self) -> bool:
        """Whether the cohort was never trained on."""
        return self.cohort != self.source.cohorts[0]


def read_predicted(config: Config, results: Path) -> list[Predicted]:
    """Return the predictions of all methods with the largest subset of their task, on every cohort.

    Methods that lack a seed or a fold are left out.

    Raises:
        UserError: a prediction file cannot be read.
    """
    all_cells = cells(config)
    found = []
    for some in scored_together(contenders(config)).values():
        spec, task = score_spec(config, some), some[0].task
        find = partial(prediction_file, results)
        source = Source(kind_of(config.tasks[task]), spec["cohorts"], spec["folds"], find, {})
        largest = max(subsets_of(all_cells, task))
        for entry, contender in zip(entries(spec), some, strict=True):
            if not contender.is_method or contender.subset != largest:
                continue
            for cohort in source.cohorts:
                runs: dict[int, dict[int, tuple[Run, Run]]] = {}
                for seed, folds in source.tested(entry, cohort).items():
                    runs[seed] = {
                        fold: (validation, run)
                        for fold, (validation, run) in folds.items()
                        if validation and run
                    }
                if all(len(of_seed) == len(source.folds) for of_seed in runs.values()):
                    found.append(Predicted(contender, cohort, source.kind, runs, source))
    return found


def people(results: Path, task: str, cohort: str) -> dict[str, Person]:
    """Return the subjects of a cohort that a task can use, by name, as they were at their first scan."""
    labels = read_tsv(layout.LABELS.at(results, task=task, cohort=cohort))
    sites = {row["scan_id"]: row["site"] for row in read_tsv(layout.SITES.at(results, cohort=cohort))}
    found = {}
    for subject, row in first_rows(labels).items():
        texts = (row["age"], row["sex"], sites.get(row["scan_id"], MISSING))
        age, sex, site = ("" if text == MISSING else text for text in texts)
        found[subject] = Person(float(age or "nan"), sex, site)
    return found


def training_ages(results: Path, one: Predicted, seed: int, fold: int) -> tuple[float, float]:
    """Return the lowest and the highest age that a cell was trained on; NaN where no age is known."""
    task = one.contender.task
    split = layout.SPLIT.at(results, task=task, split=split_name(seed, fold))
    labels = layout.LABELS.at(results, task=task, cohort=one.source.cohorts[0])
    return _ages(split, labels, one.contender.subset, one.kind, task)


@cache  # all methods of a task are trained on the same subjects
def _ages(split: Path, labels: Path, subset: Subset, kind: TaskKind, task: str) -> tuple[float, float]:
    trained = {row["scan_id"] for row in take_subset(read_split(split), subset, kind, TRAIN, task)}
    rows = read_tsv(labels)
    ages = [float(row["age"]) for row in rows if row["scan_id"] in trained and row["age"] != MISSING]
    return min(ages, default=math.nan), max(ages, default=math.nan)
