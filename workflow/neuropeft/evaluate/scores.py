"""Scores of all cells and controls of a grid, aggregated over seeds, derived from stored predictions.

With folds, the test predictions of a seed's folds are pooled in the training cohort, where each subject is
tested on once: they are scored as those of one run. A zero-shot cohort is tested on by the model of each fold
apart, and the seed's value is the mean over its folds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import TEST, VALIDATION, ZERO_SHOT
from neuropeft.config import Config, Task
from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import DRAWS, bootstrap_draws, percentile_interval
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.tested import Tested, pool, with_rule
from neuropeft.grid import NO_PRETRAINING, Group, cells, seeds_of, subsets_of, used_tasks
from neuropeft.probe_grid import is_probe, probe_file, probe_groups
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, null_file, null_method
from neuropeft.progress import track
from neuropeft.split_names import split_name
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Array, Metric, Run

CONTROL = "control"  # stands for the backbone of the controls
CONTROLS = ("mean", "age_sex", "ridge_voxels")


@dataclass(frozen=True)
class Score:
    """One metric of one group on one cohort.

    Attributes:
        group: what was trained.
        cohort: what it was tested on.
        zero_shot: whether the cohort was never trained on.
        metric: the name of a metric of its kind of task.
        higher_is_better: the direction of the metric.
        values: value per seed, without seeds that are missing, be it in one fold, or have no value.
        expected: seeds of the grid.
        n: test subjects; None where nothing has been predicted.
        ci_low: lower end of the 95 % interval over subjects of the mean over seeds; NaN if unknown.
        ci_high: its upper end.
        reason: why seeds are missing or have no value; empty if none are.
        draws: bootstrap draws of the mean over seeds, [draws], and the subjects they resample.
        subjects: test subjects, [n].
        null: mean over seeds of the same model fitted on permuted targets, [permutations], for probes.
    """

    group: Group
    cohort: str
    zero_shot: bool
    metric: str
    higher_is_better: bool
    values: dict[int, float]
    expected: tuple[int, ...]
    n: int | None = None
    ci_low: float = float("nan")
    ci_high: float = float("nan")
    reason: str = ""
    draws: Array | None = field(default=None, repr=False, compare=False)
    subjects: tuple[str, ...] = field(default=(), repr=False, compare=False)
    null: Array | None = field(default=None, repr=False, compare=False)

    @property
    def mean(self) -> float:
        """Mean over the seeds that have a value; NaN without any."""
        return float(np.mean(list(self.values.values()))) if self.values else float("nan")

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds (n - 1); NaN for fewer than two."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def null_mean(self) -> float:
        """Mean over the permutations of the targets; NaN without any."""
        return float(np.mean(self.null)) if self.null is not None else float("nan")

    @property
    def p_permutation(self) -> float:
        """How likely a score as good as this is by chance (Phipson & Smyth 2010); NaN if unknown."""
        if self.null is None or not self.values:
            return float("nan")
        as_good = self.null >= self.mean if self.higher_is_better else self.null <= self.mean
        return float((1 + as_good.sum()) / (1 + len(self.null)))

    @property
    def complete(self) -> bool:
        """Whether every seed of the grid has a value."""
        return len(self.values) == len(self.expected)


def primary_metric(task: Task) -> Metric:
    """Return the metric that tables and figures show first."""
    return kind_of(task).metrics[0]


def groups(config: Config) -> dict[Group, tuple[int, ...]]:
    """Return all groups of the grid with their seeds: cells, then probes, then the controls of each task."""
    seeds: dict[Group, list[int]] = defaultdict(list)
    all_cells = cells(config)
    for cell in all_cells:
        seeds[cell.group].append(cell.seed)
    for group in probe_groups(all_cells):
        seeds[group] = seeds_of(all_cells, group.task)
    for task in used_tasks(config):
        for control, subset in product(CONTROLS, subsets_of(all_cells, task)):
            group = Group(task, CONTROL, NO_PRETRAINING, control, subset)
            seeds[group] = seeds_of(all_cells, task)
    return {group: tuple(dict.fromkeys(of_group)) for group, of_group in seeds.items()}


# (group, cohort, seed, fold) -> the file that holds the predictions of that cell on that cohort, None if none
# does.
Find = Callable[[Group, str, int, int], Path | None]
Runs = dict[int, tuple[Run | None, Run | None]]  # fold -> its predictions on validation and on test


def collect(config: Config, results: Path, draws: int = DRAWS, find: Find | None = None) -> list[Score]:
    """Score everything that the grid asks for; what is not there yet becomes a score without values.

    Args:
        config: the configuration.
        results: the results folder.
        draws: bootstrap draws for the intervals; 0 leaves out the intervals and what probes do by chance.
        find: which file holds predictions; by default that of `prediction_file`.

    Raises:
        UserError: a prediction file cannot be read, or its seeds were tested on different subjects.
    """
    files: dict[Path, dict[RunKey, Run]] = {}
    scores: list[Score] = []
    wanted = groups(config)
    find = find or partial(prediction_file, results)
    for group, expected in track(wanted.items(), len(wanted), "scores"):
        task = config.tasks[group.task]
        for cohort in (task.train, *task.zero_shot):
            tested = {
                seed: {
                    fold: _runs_of(task, group, cohort, (seed, fold), files, find)
                    for fold in config.splits.fold_numbers
                }
                for seed in expected
            }
            present = (
                {seed: list(runs) for seed, runs in tested.items() if not _absent(runs)} if draws else {}
            )
            null = _null(task, group, cohort, present, files, find)
            scores += _score(task, group, cohort, expected, tested, draws, null)
    return scores


def _runs_of(
    task: Task,
    group: Group,
    cohort: str,
    place: tuple[int, int],
    files: dict[Path, dict[RunKey, Run]],
    find: Find,
) -> tuple[Run | None, Run | None]:
    """Return the validation and the test run of a seed and fold, None where missing."""
    seed, fold = place
    method = group.method if group.backbone == CONTROL or is_probe(group) else ""
    of_train = _runs(find(group, task.train, seed, fold), task, files)
    of_cohort = _runs(find(group, cohort, seed, fold), task, files)
    side = TEST if cohort == task.train else ZERO_SHOT
    return (
        of_train.get(RunKey(method, group.subset, seed, VALIDATION, fold)),
        of_cohort.get(RunKey(method, group.subset, seed, side, fold)),
    )


def _null(
    task: Task,
    group: Group,
    cohort: str,
    places: Mapping[int, Iterable[int]],
    files: dict[Path, dict[RunKey, Run]],
    find: Find,
) -> dict[str, Array]:
    """Return each metric of a probe that was fitted on permuted targets, [permutations], mean over seeds.

    `places` are the seeds and their folds. Empty for what is not fitted on permuted targets; a metric that is
    not defined for all of them is left out.
    """

    def find_null(group: Group, cohort: str, seed: int, fold: int) -> Path | None:
        path = find(group, cohort, seed, fold)
        return null_file(path) if path else None

    means = []
    for number in range(PERMUTATIONS if group.method in PERMUTED and places else 0):
        permuted = replace(group, method=null_method(group.method, number))
        points = []
        for seed, folds in places.items():
            runs = {fold: _runs_of(task, permuted, cohort, (seed, fold), files, find_null) for fold in folds}
            if _absent(runs):
                return {}
            points.append(_mean_measures(task, _tested(task, cohort, runs)))
        means.append({name: np.mean([point[name] for point in points]) for name in points[0]})
    null = {name: np.array([mean[name] for mean in means]) for name in means[0]} if means else {}
    return {name: values for name, values in null.items() if len(values) and np.isfinite(values).all()}


def prediction_file(results: Path, group: Group, cohort: str, seed: int = 0, fold: int = 0) -> Path:
    """Return the file of a group's predictions on a cohort; those of cells hold all seeds and folds."""
    if is_probe(group):
        return probe_file(results, group, split_name(seed, fold), cohort)
    if group.backbone == CONTROL:
        return layout.CONTROLS.at(results, task=group.task, split=split_name(seed, fold)) / f"{cohort}.tsv"
    return layout.PREDICTIONS.at(results, **asdict(group), cohort=cohort)


def _runs(path: Path | None, task: Task, files: dict[Path, dict[RunKey, Run]]) -> dict[RunKey, Run]:
    if path is None:
        return {}
    if path not in files:
        files[path] = read_predictions(path, kind_of(task)) if path.is_file() else {}
    return files[path]


def _score(
    task: Task,
    group: Group,
    cohort: str,
    expected: tuple[int, ...],
    tested: dict[int, Runs],
    draws: int,
    null: Mapping[str, Array],
) -> Iterator[Score]:
    present = {seed: _tested(task, cohort, runs) for seed, runs in tested.items() if not _absent(runs)}
    points = {seed: _mean_measures(task, of_seed) for seed, of_seed in present.items()}
    every = [one for of_seed in present.values() for one in of_seed]
    subjects = _common_subjects(group, cohort, every)
    reason = _reason(task, tested, every)
    drawn = {}
    if draws and every:
        # All seeds have as many runs, so the mean over runs is that over seeds.
        drawn = bootstrap_draws(kind_of(task), [(one.y, one.score, one.rule) for one in every], draws)
    for metric in kind_of(task).metrics:
        values = {seed: float(of_seed[metric.name]) for seed, of_seed in points.items()}
        finite = {seed: value for seed, value in values.items() if np.isfinite(value)}
        of_metric = drawn.get(metric.name) if len(finite) == len(values) else None
        low, high = percentile_interval(of_metric) if of_metric is not None else (np.nan, np.nan)
        yield Score(
            group,
            cohort,
            cohort != task.train,
            metric.name,
            metric.higher_is_better,
            finite,
            expected,
            n=len(subjects) if present else None,
            ci_low=low,
            ci_high=high,
            reason="" if len(finite) == len(expected) else reason,
            draws=of_metric,
            subjects=subjects,
            null=null.get(metric.name),
        )


def _absent(runs: Runs) -> list[int]:
    """Return the folds of a seed that have no predictions on test."""
    return [fold for fold, (_, run) in runs.items() if run is None]


def _tested(task: Task, cohort: str, runs: Runs) -> list[Tested]:
    """Return what is scored of a seed: its folds pooled in the training cohort, each apart elsewhere."""
    of_folds = [with_rule(kind_of(task), validation, run) for validation, run in runs.values() if run]
    return [pool(of_folds)] if cohort == task.train else of_folds


def _mean_measures(task: Task, of_seed: Sequence[Tested]) -> dict[str, Array]:
    measured = [kind_of(task).measure(one.y, one.score, one.rule) for one in of_seed]
    return {name: np.mean([values[name] for values in measured], axis=0) for name in measured[0]}


def _common_subjects(group: Group, cohort: str, tested: Sequence[Tested]) -> tuple[str, ...]:
    # Seeds share the test side by construction, and folds no subject; predictions that do not are left from
    # another split.
    repeated = any(len(set(one.subjects)) < len(one.subjects) for one in tested)
    if repeated or len({one.subjects for one in tested}) > 1:
        raise UserError(
            f"predictions of {group.task}/{group.backbone}/{group.pretraining}/{group.method} on {cohort} "
            "were made for different test subjects: delete them and run the workflow again"
        )
    return tested[0].subjects if tested else ()


def _reason(task: Task, tested: dict[int, Runs], every: Sequence[Tested]) -> str:
    missing = []
    for seed, runs in tested.items():
        folds = _absent(runs)
        if folds:
            missing.append(f"{seed} (fold {', '.join(map(str, folds))})" if folds[0] else str(seed))
    reasons = [f"no predictions of seed {', '.join(missing)}"] if missing else []
    kind = kind_of(task)
    reasons += [kind.why_undefined(one.y, one.score) for one in every]
    pairs = [pair for runs in tested.values() for pair in runs.values()]
    if kind.validation_chooses and any(run and validation is None for validation, run in pairs):
        reasons.append(f"no predictions on validation, which chooses {kind.validation_chooses}")
    return "; ".join(dict.fromkeys(filter(None, reasons)))
