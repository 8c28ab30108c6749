"""Score contenders from their stored predictions, with bootstrap draws, once and for all that is published.

With folds, the test predictions of a seed's folds are pooled in the training cohort, where each subject is
tested on once: they are scored as those of one run. A zero-shot cohort is tested on by the model of each fold
apart, and the seed's value is the mean over its folds.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuropeft import layout
from neuropeft.cohorts.splits import TEST, VALIDATION, ZERO_SHOT
from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import DRAWS, bootstrap_draws, percentile_interval
from neuropeft.evaluate.delong import auc_interval
from neuropeft.evaluate.ensembles import mean_run
from neuropeft.evaluate.predictions import RunKey, read_predictions
from neuropeft.evaluate.tested import Tested, pool, with_rule
from neuropeft.files import atomic_path, write_tsv
from neuropeft.probe_names import PERMUTATIONS, PERMUTED, null_file, null_method
from neuropeft.split_names import split_name
from neuropeft.subsets import Subset
from neuropeft.tasks import of_spec
from neuropeft.tasks.base import Array, Metric, Run, TaskKind
from neuropeft.tasks.classification import Binary
from neuropeft.variant_names import ROBUSTNESS, VARIED, variant_of

COLUMNS = (
    *("backbone", "pretraining", "method", "subset", "cohort", "metric"),
    *("seed_values", "n", "ci_low", "ci_high", "null_mean", "p_permutation", "subjects", "reason"),
)


@dataclass(frozen=True)
class Entry:
    """One contender, as `contenders.score_spec` writes it."""

    sort: str  # `cells`, `ensembles`, `probes` or `controls`
    task: str  # the name of its task
    line: tuple[str, str, str]  # backbone, pretraining, method
    subset: Subset  # how much of the training subjects it learnt from
    seeds: tuple[int, ...]  # the seeds that it should have
    # of an ensemble, the cells that each of its seeds is the mean of
    members: tuple[tuple["Entry", ...], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where the predictions of contenders come from, and how they are scored."""

    kind: TaskKind  # what was predicted
    cohorts: Sequence[str]  # the training cohort, then the zero-shot cohorts
    folds: Sequence[int]  # the folds of every seed
    find: "Find"  # which file holds predictions
    files: dict[Path, dict[RunKey, Run]]  # what has been read

    def runs(self, path: Path | None) -> dict[RunKey, Run]:
        """Return the predictions of a file; none where there is no file."""
        if path is None:
            return {}
        if path not in self.files:
            self.files[path] = read_predictions(path, self.kind) if path.is_file() else {}
        return self.files[path]

    def tested(self, entry: Entry, cohort: str, find: "Find | None" = None) -> "dict[int, Runs]":
        """Return, by seed and fold, the validation and the test run of an entry, None where missing."""
        if entry.members:
            return {
                seed: self._mean(entry, members, cohort)
                for seed, members in zip(entry.seeds, entry.members, strict=True)
            }
        find = find or self.find
        validated = _validated(entry)
        side = TEST if cohort == self.cohorts[0] else ZERO_SHOT
        found: dict[int, Runs] = {}
        for seed in entry.seeds:
            found[seed] = {}
            for fold in self.folds:
                of_train = self.runs(find(validated, self.cohorts[0], seed, fold))
                of_cohort = self.runs(find(entry, cohort, seed, fold))
                found[seed][fold] = (
                    of_train.get(RunKey(_key(validated), entry.subset, seed, VALIDATION, fold)),
                    of_cohort.get(RunKey(_key(entry), entry.subset, seed, side, fold)),
                )
        return found

    def _mean(self, entry: Entry, members: Sequence[Entry], cohort: str) -> "Runs":
        """Return, by fold, the mean runs of the members of a seed; None where a member lacks one."""
        of_members = [runs for one in members for runs in self.tested(one, cohort).values()]
        found: Runs = {}
        for fold in self.folds:
            validation, test = zip(*(runs[fold] for runs in of_members), strict=True)
            if len({run.subjects for run in test if run}) > 1:
                raise _other_subjects(entry, cohort)
            found[fold] = mean_run(validation), mean_run(test)
        return found

    def scored(self, cohort: str, runs: "Runs") -> list[Tested]:
        """Return what is scored of a seed: its folds pooled in the training cohort, each apart elsewhere."""
        of_folds = [with_rule(self.kind, validation, run) for validation, run in runs.values() if run]
        return [pool(of_folds)] if cohort == self.cohorts[0] else of_folds

    def means(self, scored: Sequence[Tested]) -> dict[str, Array]:
        """Return each metric of a seed, the mean over what is scored of it."""
        measured = [self.kind.measure(one.y, one.score, one.rule) for one in scored]
        return {name: np.mean([values[name] for values in measured], axis=0) for name in measured[0]}


# (entry, cohort, seed, fold) -> the file that holds its predictions, None if none does.
Find = Callable[[Entry, str, int, int], Path | None]
Runs = dict[int, tuple[Run | None, Run | None]]  # fold -> its predictions on validation and on test
Row = dict[str, object]
UNKNOWN = np.full(DRAWS, np.nan)


def score(spec: Mapping[str, Any], results: Path, table: Path, draws: Path, find: Find | None = None) -> None:
    """Score contenders that are predicted together, and write their scores and bootstrap draws.

    What is not predicted yet becomes a score without values.

    Args:
        spec: what `contenders.score_spec` returned.
        results: the results folder.
        table: file for a row per contender, cohort and metric; `seed_values` are `seed=value`, `subjects` is
            a hash of who was tested, equal for those that can be compared in pairs.
        draws: file for the draws of each row's mean over seeds, [rows, DRAWS] float32, NaN where there are
            none. All contenders that were tested on the same subjects meet the same resamples.
        find: which file holds predictions; by default that of `prediction_file`.

    Raises:
        UserError: a prediction file cannot be read, or its seeds were tested on different subjects.
    """
    kind = of_spec(spec["task"])
    source = Source(kind, spec["cohorts"], spec["folds"], find or partial(prediction_file, results), {})
    scored = [
        pair for entry in entries(spec) for cohort in spec["cohorts"] for pair in _rows(source, entry, cohort)
    ]
    write_tsv(table, [row for row, _ in scored], COLUMNS)
    with atomic_path(draws) as unfinished, unfinished.open("wb") as stream:
        np.save(stream, np.array([drawn for _, drawn in scored], dtype=np.float32))


def entries(spec: Mapping[str, Any]) -> list[Entry]:
    """Return the contenders of a specification."""
    found = []
    for one in spec["contenders"]:
        task, subset = spec["task"]["name"], Subset.parse(one["subset"])
        members = tuple(
            tuple(Entry("cells", task, tuple(line), subset, (seed,)) for line, seed in of_seed)
            for of_seed in one.get("members", ())
        )
        found.append(Entry(spec["sort"], task, tuple(one["line"]), subset, tuple(one["seeds"]), members))
    return found


def prediction_file(results: Path, entry: Entry, cohort: str, seed: int = 0, fold: int = 0) -> Path:
    """Return the file of a contender's predictions on a cohort; those of cells hold all seeds and folds."""
    backbone, pretraining, method = *entry.line[:2], variant_of(entry.line[2])[0]
    names = {"task": entry.task, "backbone": backbone, "pretraining": pretraining, "method": method}
    if entry.sort == "cells":
        return layout.PREDICTIONS.at(results, **names, cohort=cohort)
    if entry.sort in VARIED:
        return layout.VARIED.at(results, **names, cohort=cohort, analysis=entry.sort)
    folder = {"probes": layout.PROBES, "controls": layout.CONTROLS}[entry.sort]
    return folder.at(results, **names, split=split_name(seed, fold)) / f"{cohort}.tsv"


def _key(entry: Entry) -> str:
    """Return what a file that holds several calls the predictions of a contender; see `RunKey`."""
    if entry.sort in VARIED:
        return variant_of(entry.line[2])[1]
    return "" if entry.sort == "cells" else entry.line[2]


def _validated(entry: Entry) -> Entry:
    """Return whose validation predictions choose the rule; validation scans are never changed."""
    if entry.sort != ROBUSTNESS:
        return entry
    return replace(entry, sort="cells", line=(*entry.line[:2], variant_of(entry.line[2])[0]))


def _rows(source: Source, entry: Entry, cohort: str) -> Iterable[tuple[Row, Array]]:
    """Yield the row and the draws of each metric."""
    tested = source.tested(entry, cohort)
    present = {seed: source.scored(cohort, runs) for seed, runs in tested.items() if not _absent(runs)}
    points = {seed: source.means(scored) for seed, scored in present.items()}
    every = [one for scored in present.values() for one in scored]
    subjects = _common_subjects(entry, cohort, every)
    reason = _reason(source.kind, tested, every)
    # All seeds have as many runs, so the mean over runs is that over seeds.
    runs = [(one.y, one.score, one.rule) for one in every]
    drawn = bootstrap_draws(source.kind, runs, seeds=len(present)) if every else {}
    null = _null(source, entry, cohort, present)
    for metric in (*source.kind.metrics, *source.kind.parts):
        values = {seed: float(of_seed[metric.name]) for seed, of_seed in points.items()}
        finite = {seed: value for seed, value in values.items() if np.isfinite(value)}
        of_metric = drawn.get(metric.name) if len(finite) == len(values) else None
        low, high = _interval(metric, every, of_metric) if of_metric is not None else (None, None)
        mean = float(np.mean(list(finite.values()))) if finite else None
        by_chance = null.get(metric.name)
        yield (
            {
                **dict(zip(COLUMNS, (*entry.line, entry.subset, cohort, metric.name), strict=False)),
                "seed_values": " ".join(f"{seed}={value!r}" for seed, value in finite.items()) or None,
                "n": len(subjects) if present else None,
                "ci_low": low,
                "ci_high": high,
                "null_mean": None if by_chance is None else float(np.mean(by_chance)),
                "p_permutation": (
                    None
                    if by_chance is None or mean is None
                    else p_permutation(by_chance, mean, metric.higher_is_better)
                ),
                "subjects": hashlib.sha256("\n".join(subjects).encode()).hexdigest()[:16],
                "reason": None if len(finite) == len(entry.seeds) else reason or None,
            },
            UNKNOWN if of_metric is None else of_metric,
        )


def _interval(metric: Metric, tested: Sequence[Tested], drawn: Array) -> tuple[float, float]:
    """Return the 95 % interval of the mean over seeds: DeLong's of an AUC of two classes, or by bootstrap."""
    if metric is Binary.metrics[0]:
        return auc_interval(tested[0].y, [one.score for one in tested])
    return percentile_interval(drawn)


def p_permutation(null: Array, mean: float, higher_is_better: bool = True) -> float:
    """Return how likely a score as good as this is by chance, [permutations] (Phipson & Smyth 2010)."""
    as_good = null >= mean if higher_is_better else null <= mean
    return float((1 + as_good.sum()) / (1 + len(null)))


def _null(
    source: Source, entry: Entry, cohort: str, present: Mapping[int, Sequence[Tested]]
) -> dict[str, Array]:
    """Return each metric of a probe that was fitted on permuted targets, [permutations], mean over seeds.

    Empty for what is not fitted on permuted targets; a metric that is not defined for all of them is left
    out.
    """
    if entry.sort != "probes" or entry.line[2] not in PERMUTED or not present:
        return {}

    def find_null(entry: Entry, cohort: str, seed: int, fold: int) -> Path | None:
        path = source.find(entry, cohort, seed, fold)
        return null_file(path) if path else None

    means = []
    for number in range(PERMUTATIONS):
        line = (*entry.line[:2], null_method(entry.line[2], number))
        permuted = replace(entry, line=line, seeds=tuple(present))
        tested = source.tested(permuted, cohort, find_null)
        if any(map(_absent, tested.values())):
            return {}
        points = [source.means(source.scored(cohort, runs)) for runs in tested.values()]
        means.append({name: np.mean([point[name] for point in points]) for name in points[0]})
    null = {name: np.array([mean[name] for mean in means]) for name in means[0]}
    return {name: values for name, values in null.items() if np.isfinite(values).all()}


def _absent(runs: Runs) -> list[int]:
    """Return the folds of a seed that have no predictions on test."""
    return [fold for fold, (_, run) in runs.items() if run is None]


def _common_subjects(entry: Entry, cohort: str, tested: Sequence[Tested]) -> tuple[str, ...]:
    # Seeds share the test side by construction, and folds no subject; predictions that do not are left from
    # another split.
    repeated = any(len(set(one.subjects)) < len(one.subjects) for one in tested)
    if repeated or len({one.subjects for one in tested}) > 1:
        raise _other_subjects(entry, cohort)
    return tested[0].subjects if tested else ()


def _other_subjects(entry: Entry, cohort: str) -> UserError:
    return UserError(
        f"predictions of {'/'.join((entry.task, *entry.line))} on {cohort} were made for different test "
        "subjects: delete them and run the workflow again"
    )


def _reason(kind: TaskKind, tested: Mapping[int, Runs], every: Sequence[Tested]) -> str:
    missing = []
    for seed, runs in tested.items():
        folds = _absent(runs)
        if folds:
            missing.append(f"{seed} (fold {', '.join(map(str, folds))})" if folds[0] else str(seed))
    reasons = [f"no predictions of seed {', '.join(missing)}"] if missing else []
    reasons += [kind.why_undefined(one.y, one.score) for one in every]
    pairs = [pair for runs in tested.values() for pair in runs.values()]
    if kind.validation_chooses and any(run and validation is None for validation, run in pairs):
        reasons.append(f"no predictions on validation, which chooses {kind.validation_chooses}")
    return "; ".join(dict.fromkeys(filter(None, reasons)))
