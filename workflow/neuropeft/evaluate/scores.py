"""The stored scores of a grid, aggregated over seeds, read back for comparisons, tables and figures."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuropeft import layout
from neuropeft.config import Config, Task
from neuropeft.contenders import Contender, contenders
from neuropeft.errors import UserError
from neuropeft.files import MISSING, read_tsv
from neuropeft.grid import Group
from neuropeft.subsets import Subset
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Metric

NOT_SCORED = "not scored"  # why a contender of which there are no scores at all has no values

Stored = dict[tuple[Group, str, str], tuple[dict[str, str], NDArray[np.float32] | None]]


@dataclass(frozen=True)
class Score:
    """One metric of one contender on one cohort."""

    contender: Contender  # who is scored
    cohort: str  # what it was tested on
    zero_shot: bool  # whether the cohort was never trained on
    metric: str  # the name of a metric of its kind of task
    higher_is_better: bool  # the direction of the metric
    # value per seed, without seeds that are missing, be it in one fold, or have no value
    values: dict[int, float]
    n: int | None = None  # test subjects; None where nothing has been predicted
    # lower end of the 95 % interval over subjects of the mean over seeds; NaN if unknown
    ci_low: float = math.nan
    ci_high: float = math.nan  # its upper end
    # mean score of a probe that is fitted on permuted targets; NaN where there is none
    null_mean: float = math.nan
    p_permutation: float = math.nan  # how likely a score as good as this is by chance; NaN if unknown
    reason: str = ""  # why seeds are missing or have no value; empty if none are
    subjects: str = ""  # what tells the tested subjects of one score from those of another
    # bootstrap draws of the mean over seeds, [draws]; None where there are none or none were read
    draws: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def mean(self) -> float:
        """Mean over the seeds that have a value; NaN without any."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds (n - 1); NaN for fewer than two."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def order(self) -> float:
        """The mean, its sign turned so that scores of one metric are sorted by it, the best first."""
        return -self.mean if self.higher_is_better else self.mean

    @property
    def complete(self) -> bool:
        """Whether every seed of the grid has a value."""
        return len(self.values) == len(self.contender.seeds)

    @property
    def comparable(self) -> bool:
        """Whether it is complete and has bootstrap draws, which paired comparisons take."""
        return self.complete and self.draws is not None


def primary_metric(task: Task) -> Metric:
    """Return the metric that tables and figures show first."""
    return kind_of(task).metrics[0]


def at_home(config: Config, scores: Iterable[Score], task: str) -> list[Score]:
    """Return the scores of a task on its training cohort, by its first metric."""
    wanted = task, primary_metric(config.tasks[task]).name, False
    return [score for score in scores if (score.contender.task, score.metric, score.zero_shot) == wanted]


def read_scores(
    config: Config, results: Path, with_draws: bool = False, some: Iterable[Contender] | None = None
) -> list[Score]:
    """Read the scores of everything that the grid asks for; what is not there is a score without values.

    Args:
        config: the configuration.
        results: the folder that holds `scores`.
        with_draws: whether to read bootstrap draws, which comparisons need.
        some: whose scores, if not those of the grid's contenders.

    Raises:
        UserError: a file of scores cannot be read.
    """
    found: list[Score] = []
    stored: dict[str, Stored] = {}
    for contender in contenders(config) if some is None else some:
        task, scored = config.tasks[contender.task], contender.scored
        if scored not in stored:
            stored[scored] = _read(results, contender.task, scored, with_draws)
        kind = kind_of(task)
        for cohort in (task.train, *task.zero_shot):
            for metric in (*kind.metrics, *kind.parts):
                row, draws = stored[scored].get((contender.group, cohort, metric.name), ({}, None))
                found.append(_score(contender, cohort, cohort != task.train, metric, row, draws))
    return found


def _read(results: Path, task: str, scored: str, with_draws: bool) -> Stored:
    table, draws = (place.at(results, scored=scored) for place in (layout.SCORES, layout.SCORE_DRAWS))
    if not table.is_file():
        return {}
    try:
        rows = read_tsv(table)
        drawn = np.load(draws) if with_draws else [None] * len(rows)
        found: Stored = {}
        for row, of_row in zip(rows, drawn, strict=True):
            subset = Subset.parse(row["subset"])
            group = task, row["backbone"], row["pretraining"], row["method"], subset
            found[group, row["cohort"], row["metric"]] = row, of_row
        return found
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{table} or {draws.name}: {error}; delete both and run the workflow again"
        ) from error


def _score(
    contender: Contender,
    cohort: str,
    zero_shot: bool,
    metric: Metric,
    row: Mapping[str, str],
    draws: NDArray[np.float32] | None,
) -> Score:
    def number(column: str) -> float:
        return math.nan if row.get(column, MISSING) == MISSING else float(row[column])

    values = {} if row.get("seed_values", MISSING) == MISSING else row["seed_values"].split()
    pairs = (pair.split("=") for pair in values)
    n = number("n")
    reason = row.get("reason", NOT_SCORED)
    return Score(
        contender,
        cohort,
        zero_shot,
        metric.name,
        metric.higher_is_better,
        {int(seed): float(value) for seed, value in pairs},
        None if math.isnan(n) else int(n),
        number("ci_low"),
        number("ci_high"),
        number("null_mean"),
        number("p_permutation"),
        "" if reason == MISSING else reason,
        row.get("subjects", ""),
        None if draws is None or np.isnan(draws).all() else draws,
    )
