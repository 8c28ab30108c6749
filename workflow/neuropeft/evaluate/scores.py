"""Scores of all cells and controls of a grid, aggregated over seeds, derived from stored predictions."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from neuropeft.cohorts.splits import TEST, VALIDATION, ZERO_SHOT
from neuropeft.config import Config, Task
from neuropeft.errors import UserError
from neuropeft.evaluate.metrics import (
    DRAWS,
    HIGHER_IS_BETTER,
    METRICS,
    Array,
    bootstrap_draws,
    measure,
    percentile_interval,
    why_undefined,
    youden_threshold,
)
from neuropeft.evaluate.predictions import Run, RunKey, read_predictions
from neuropeft.grid import NO_PRETRAINING, Group, cells, seeds_of, used_tasks
from neuropeft.probe_grid import is_probe, probe_file, probe_groups
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, null_file, null_method
from neuropeft.progress import track

CONTROL = "control"  # stands for the backbone of the controls
CONTROLS = ("mean", "age_sex", "ridge_voxels")
CONTROL_FRACTION = 100


@dataclass(frozen=True)
class Score:
    """One metric of one group on one cohort.

    Attributes:
        group: what was trained.
        cohort: what it was tested on.
        zero_shot: whether the cohort was never trained on.
        metric: a name of `metrics.METRICS`.
        values: value per seed, without seeds that are missing or have no value.
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
        higher = HIGHER_IS_BETTER[self.metric]
        as_good = self.null >= self.mean if higher else self.null <= self.mean
        return float((1 + as_good.sum()) / (1 + len(self.null)))

    @property
    def complete(self) -> bool:
        """Whether every seed of the grid has a value."""
        return len(self.values) == len(self.expected)


def primary_metric(task: Task) -> str:
    """Return the metric that the paper reports for this kind of task: AUC or mean absolute error."""
    return METRICS[task.kind][0]


def groups(config: Config) -> dict[Group, tuple[int, ...]]:
    """Return all groups of the grid with their seeds: cells, then probes, then the controls of each task."""
    seeds: dict[Group, list[int]] = defaultdict(list)
    all_cells = cells(config)
    for cell in all_cells:
        seeds[cell.group].append(cell.seed)
    for group in probe_groups(all_cells):
        seeds[group] = seeds_of(all_cells, group.task)
    for task in used_tasks(config):
        for control in CONTROLS:
            group = Group(task, CONTROL, NO_PRETRAINING, control, CONTROL_FRACTION)
            seeds[group] = seeds_of(all_cells, task)
    return {group: tuple(of_group) for group, of_group in seeds.items()}


# (group, cohort, seed) -> the file that holds the predictions of that cell on that cohort, None if none does.
Find = Callable[[Group, str, int], Path | None]


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
            tested = {seed: _seed_runs(task, group, cohort, seed, files, find) for seed in expected}
            present = [seed for seed, (_, run) in tested.items() if run] if draws else []
            null = _null(task, group, cohort, present, files, find)
            scores += _score(task, group, cohort, expected, tested, draws, null)
    return scores


def _seed_runs(
    task: Task, group: Group, cohort: str, seed: int, files: dict[Path, dict[RunKey, Run]], find: Find
) -> tuple[Run | None, Run | None]:
    """Return the validation and the test run of one seed, None where missing."""
    method = group.method if group.backbone == CONTROL or is_probe(group) else ""
    of_train = _runs(find(group, task.train, seed), task, files)
    of_cohort = _runs(find(group, cohort, seed), task, files)
    side = TEST if cohort == task.train else ZERO_SHOT
    return (
        of_train.get(RunKey(method, group.fraction, seed, VALIDATION)),
        of_cohort.get(RunKey(method, group.fraction, seed, side)),
    )


def _null(
    task: Task,
    group: Group,
    cohort: str,
    seeds: Sequence[int],
    files: dict[Path, dict[RunKey, Run]],
    find: Find,
) -> dict[str, Array]:
    """Return each metric of a probe that was fitted on permuted targets, [permutations], mean over `seeds`.

    Empty for what is not fitted on them; a metric that is not defined for all of them is left out.
    """

    def find_null(group: Group, cohort: str, seed: int) -> Path | None:
        path = find(group, cohort, seed)
        return null_file(path) if path else None

    means = []
    for number in range(PERMUTATIONS if group.method in PERMUTED and seeds else 0):
        permuted = replace(group, method=null_method(group.method, number))
        points = []
        for seed in seeds:
            validation, run = _seed_runs(task, permuted, cohort, seed, files, find_null)
            if run is None:
                return {}
            points.append(measure(task.kind, run.y, run.score, _rule(task, validation, run)))
        means.append({name: np.mean([point[name] for point in points]) for name in METRICS[task.kind]})
    null = {name: np.array([mean[name] for mean in means]) for name in METRICS[task.kind]}
    return {name: values for name, values in null.items() if len(values) and np.isfinite(values).all()}


def prediction_file(results: Path, group: Group, cohort: str, seed: int) -> Path:
    """Return the file of a group's predictions on a cohort, which for cells does not depend on the seed."""
    if is_probe(group):
        return probe_file(results, group, f"seed-{seed}", cohort)
    if group.backbone == CONTROL:
        return results / "controls" / group.task / f"seed-{seed}" / f"{cohort}.tsv"
    folder = results / "predictions" / group.task / group.backbone / group.pretraining / group.method
    return folder / f"{cohort}.tsv"


def _runs(path: Path | None, task: Task, files: dict[Path, dict[RunKey, Run]]) -> dict[RunKey, Run]:
    if path is None:
        return {}
    if path not in files:
        files[path] = read_predictions(path, task.kind, len(task.classes or {})) if path.is_file() else {}
    return files[path]


def _score(
    task: Task,
    group: Group,
    cohort: str,
    expected: tuple[int, ...],
    tested: dict[int, tuple[Run | None, Run | None]],
    draws: int,
    null: Mapping[str, Array],
) -> Iterator[Score]:
    present = {seed: (run, _rule(task, validation, run)) for seed, (validation, run) in tested.items() if run}
    points = {seed: measure(task.kind, run.y, run.score, rule) for seed, (run, rule) in present.items()}
    subjects = _common_subjects(group, cohort, [run for run, _ in present.values()])
    reason = _reason(task, expected, tested)
    drawn = {}
    if draws and present:
        runs = [(run.y, run.score, rule) for run, rule in present.values()]
        drawn = bootstrap_draws(task.kind, runs, draws)
    for metric in METRICS[task.kind]:
        values = {seed: float(of_seed[metric]) for seed, of_seed in points.items()}
        finite = {seed: value for seed, value in values.items() if np.isfinite(value)}
        of_metric = drawn.get(metric) if len(finite) == len(values) else None
        low, high = percentile_interval(of_metric) if of_metric is not None else (np.nan, np.nan)
        yield Score(
            group,
            cohort,
            cohort != task.train,
            metric,
            finite,
            expected,
            n=len(subjects) if present else None,
            ci_low=low,
            ci_high=high,
            reason="" if len(finite) == len(expected) else reason,
            draws=of_metric,
            subjects=subjects,
            null=null.get(metric),
        )


def _rule(task: Task, validation: Run | None, tested: Run) -> Array:
    """Return what `measure` predicts classes by: of two, a threshold chosen on validation and then frozen."""
    if task.kind == "multiclass":
        return tested.prior
    if task.kind == "regression" or validation is None:
        return np.array(np.nan)
    return np.array(youden_threshold(validation.y, validation.score))


def _common_subjects(group: Group, cohort: str, runs: Sequence[Run]) -> tuple[str, ...]:
    # Seeds share the test side by construction; predictions that do not are left from another split.
    if len({run.subjects for run in runs}) > 1:
        raise UserError(
            f"predictions of {group.task}/{group.backbone}/{group.pretraining}/{group.method} on {cohort} "
            "were made for different test subjects: delete them and run the workflow again"
        )
    return runs[0].subjects if runs else ()


def _reason(task: Task, expected: tuple[int, ...], tested: dict[int, tuple[Run | None, Run | None]]) -> str:
    missing = [str(seed) for seed in expected if tested[seed][1] is None]
    reasons = [f"no predictions of seed {', '.join(missing)}"] if missing else []
    for validation, run in tested.values():
        why = why_undefined(task.kind, run.y, run.score) if run else ""
        if run and validation is None and task.kind == "binary":
            why = why or "no predictions on validation, which chooses the threshold"
        if why and why not in reasons:
            reasons.append(why)
    return "; ".join(reasons)
