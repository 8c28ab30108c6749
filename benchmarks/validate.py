"""Does the benchmark find what is planted? Its own code meets cohorts in which the truth is planted.

Five parts, each with what was planted beside what was found. effect: do AUC and MAE move with the planted
effect? order: is the order of methods the same in other cohorts, within the stated intervals? leak: are
subjects caught who are filed under two names, and would they inflate the score? site: is a site that goes
with the diagnosis warned of, and one that does not, not? interval: do 95 % intervals hold the truth in 95 %
of studies?

Run as: python benchmarks/validate.py [--cohorts 10] [--studies 1000] [--processes 2] [--parts effect,leak]
"""

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import norm
from studies import AGE_SD, METHODS, Planted, check, config_of, study, write_cohort, write_splits

from neuropeft.errors import UserError
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.score import score
from neuropeft.evaluate.scores import Score
from neuropeft.files import MISSING, read_tsv, write_tsv
from neuropeft.publish.confound_table import confound_records, confound_warnings
from neuropeft.publish.formats import write_sheet
from neuropeft.publish.sheet import Sheet, markdown, write_csv

LEVELS = (Planted(), Planted(0.5, 0.4), Planted(1.0, 0.7), Planted(2.0, 0.95))
LEARNERS = ("ridge_voxels", "probe_concat", "scratch", "lora")
CONFOUNDED, BALANCED = Planted(site=2.0, agreement=0.85), Planted(site=2.0)
SIZES = (25, 50, 100, 200)  # test subjects
JUDGED = 100  # test subjects from which the coverage of intervals is judged
GOAL = (0.93, 0.97)
PARTS = ("effect", "order", "leak", "site", "interval")
COLUMNS = ("part", "question", "planted", "found", "holds")

NOTES = (
    "effect: means over the cohorts at effects that grow from none; at best is what an ideal reader of the "
    "scans would reach. 300 subjects, of whom 90 are tested.",
    "interval: the truth is that of the law that predictions are drawn from; the goal is "
    f"{GOAL[0]:.0%} to {GOAL[1]:.0%}, give or take the error of so many studies. Fewer than {JUDGED} test "
    "subjects are shown and not judged, nor are seeds whose own errors differ (by 10 %, SD): three of them "
    "tell little of how far others would lie.",
)


@dataclass(frozen=True)
class Answer:
    """What was planted, what was found, and whether that is right; None where it is not judged."""

    part: str
    question: str
    planted: str
    found: str
    holds: bool | None = None


# -- cohorts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What the benchmark found in a cohort: scores, and warnings by task."""

    scores: list[Score]
    warnings: dict[str, list[str]]

    def of(self, task: str, method: str) -> Score:
        """Return the primary score of a contender."""
        metric = {"ad": "auc", "age": "mae"}[task]
        wanted = (task, method, metric)
        return next(s for s in self.scores if (s.contender.task, s.contender.method, s.metric) == wanted)


def outcome(job: tuple[Planted, int], methods: Sequence[str]) -> Outcome:
    with TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        with redirect_stderr(log), redirect_stdout(log):
            scores = study(Path(folder), *job, list(methods))
        config = config_of(list(methods))
        return Outcome(scores, confound_warnings(config, confound_records(config, Path(folder))))


def mapped(function: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> list[Any]:
    """Return what a function makes of each job, in as many processes."""
    if processes == 1:
        return list(map(function, jobs))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(function, jobs))


def outcomes(
    planted: Sequence[Planted], cohorts: int, processes: int, methods: Sequence[str]
) -> dict[Planted, list[Outcome]]:
    """Return what the benchmark finds in so many cohorts of each sort."""
    jobs = [(one, 100 * number + place) for place, one in enumerate(planted) for number in range(cohorts)]
    found = mapped(partial(outcome, methods=methods), jobs, processes)
    by_sort: dict[Planted, list[Outcome]] = {}
    for (one, _), cohort in zip(jobs, found, strict=True):
        by_sort.setdefault(one, []).append(cohort)
    return by_sort


def effects(found: dict[Planted, list[Outcome]]) -> Iterator[Answer]:
    """Do AUC and MAE move with the planted effect, and do they not where there is none?"""
    for task, ideal in (("ad", [one.auc for one in LEVELS]), ("age", [one.mae for one in LEVELS])):
        sign, name = (1, "AUC") if task == "ad" else (-1, "MAE, years")
        for method in LEARNERS:
            means = [_mean(found[level], task, method) for level in LEVELS]
            rises = all(sign * (after - before) > 0 for before, after in itertools.pairwise(means))
            yield Answer(
                "effect", f"{name} of {method} moves with the effect",
                f"at best {_numbers(ideal)}", _numbers(means), rises,
            )  # fmt: skip
    nothing = [one.of("ad", method) for one in found[LEVELS[0]] for method in LEARNERS]
    nothing += [one.of("ad", "shuffled") for some in found.values() for one in some]
    held = np.mean([one.ci_low <= 0.5 <= one.ci_high for one in nothing])
    text = f"{held:.0%} of {len(nothing)} intervals hold 0.5"
    yield Answer("effect", "no effect, or shuffled labels: no skill", "AUC 0.5", text, bool(held >= 0.8))


def order(found: dict[Planted, list[Outcome]]) -> Iterator[Answer]:
    """Is a difference that is beyond noise in one cohort there in other cohorts of its sort?"""
    for task in ("ad", "age"):
        beyond = same = against = 0
        for level in LEVELS[1:]:
            for pair in itertools.combinations((*LEARNERS, "mean"), 2):
                signs = [_sign(*(one.of(task, method) for method in pair)) for one in found[level]]
                for (higher, sure), (other_higher, other_sure) in itertools.permutations(signs, 2):
                    beyond += sure
                    same += sure and higher == other_higher
                    against += sure and other_sure and higher != other_higher
        yield Answer(
            "order",
            f"{task}: which of two methods is better, where a cohort says so beyond noise",
            "the same in other cohorts",
            f"the same in {same} of {beyond}; in {against} beyond noise the other way",
            beyond > 0 and same >= 0.95 * beyond and against <= 0.01 * beyond,
        )


def _mean(some: Sequence[Outcome], task: str, method: str) -> float:
    return float(np.mean([one.of(task, method).mean for one in some]))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _sign(one: Score, other: Score) -> tuple[bool, bool]:
    """Return whether the first has the higher score, and whether that is beyond noise."""
    assert one.draws is not None
    assert other.draws is not None
    low, high = percentile_interval(one.draws.astype(float) - other.draws)
    return one.mean > other.mean, not low <= 0 <= high


def leaks(cohorts: int, processes: int) -> Iterator[Answer]:
    """Would subjects who are filed twice inflate the score, and are they caught?"""
    filed = Planted(subjects=150, filed_twice=True)
    plain = Planted(subjects=300)
    found = outcomes((plain, filed), cohorts, processes, ["scratch"])
    for method in ("ridge_voxels", "scratch"):
        fair, inflated = (
            np.mean([one.of("ad", method).mean for one in found[sort]]) for sort in (plain, filed)
        )
        text = f"{inflated:.2f} with leaks, {fair:.2f} without"
        yield Answer("leak", f"AUC of {method} without any effect", "inflated", text, inflated > fair + 0.1)
    for sort, planted in ((filed, "refused"), (plain, "passed")):
        refused = sum(is_refused(sort, seed) for seed in range(cohorts))
        text = f"{refused} of {cohorts} refused"
        yield Answer(
            "leak", "the check before training", planted, text, refused == cohorts * sort.filed_twice
        )


def is_refused(planted: Planted, seed: int) -> bool:
    with TemporaryDirectory() as folder:
        write_cohort(Path(folder), planted, seed)
        split, _ = write_splits(Path(folder), config_of(["scratch"]))
        try:
            check(Path(folder), split)
        except UserError as error:
            return "hold the same image" in str(error)
    return False


def sites(cohorts: int, processes: int) -> Iterator[Answer]:
    """Is a site that goes with the diagnosis warned of, and one that does not, not?"""
    found = outcomes((CONFOUNDED, BALANCED), cohorts, processes, ["scratch"])
    for sort, planted in (
        (CONFOUNDED, "AUC without any effect, a site that agrees in 85 %"),
        (BALANCED, "a balanced one"),
    ):
        means = [one.of("ad", "scratch").mean for one in found[sort]]
        question = f"scratch, {planted}"
        holds = min(means) > 0.6 if sort is CONFOUNDED else None
        yield Answer("site", question, "0.50", f"{np.mean(means):.2f}", holds)
    said = [" ".join(one.warnings.get("ad", [])) for one in found[CONFOUNDED]]
    warned = sum("ad goes with site" in text for text in said)
    text = f"{warned} of {cohorts} cohorts"
    yield Answer("site", "a warning before adaptation", "in all", text, warned == cohorts)
    after = sum("Scratch" in text.partition("Beyond the label")[2] for text in said)
    yield Answer(
        "site", "and of the predictions after it", "in all", f"{after} of {cohorts} cohorts", after == cohorts
    )
    false = sum(bool(one.warnings.get(task)) for one in found[BALANCED] for task in ("ad", "age"))
    text = f"{false} of {2 * cohorts} tasks"
    yield Answer("site", "a warning where site is balanced", "in none", text, false <= 0.1 * 2 * cohorts)


# -- intervals -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """What predictions are drawn from, and how many subjects are tested."""

    kind: str
    effect: float
    n: int
    apart: float = 0.0  # SD of the size of the errors over seeds, as a share of it

    @property
    def metric(self) -> str:
        """The metric whose interval is asked about."""
        return {"binary": "auc", "regression": "mae"}[self.kind]

    @property
    def is_judged(self) -> bool:
        """Whether its intervals have to hold the truth in 95 % of studies."""
        return self.n >= JUDGED and not self.apart

    @property
    def truth(self) -> float:
        """What the metric is of all people."""
        if self.kind == "binary":
            return float(norm.cdf(self.effect / math.sqrt(2)))
        return self.effect * math.sqrt(2 / math.pi)


def coverage(studies: int, processes: int) -> Iterator[Answer]:
    """Do 95 % intervals of the mean over three seeds hold the truth in 95 % of studies?"""
    kinds = (("binary", 0.0), ("binary", 1.0), ("binary", 2.0), ("regression", 5.0))
    laws = [Law(*kind, n) for kind, n in itertools.product(kinds, SIZES)]
    laws += [Law("regression", 5.0, n, 0.1) for n in SIZES]
    shares = mapped(partial(held, studies=studies), laws, processes)
    for law, share in zip(laws, shares, strict=True):
        question = f"{law.metric.upper()} {law.truth:.2f}, {law.n} test subjects, {studies} studies"
        yield _covered(question + ", seeds differ" * bool(law.apart), share, studies, law.is_judged)
    judged = [share for law, share in zip(laws, shares, strict=True) if law.is_judged]
    question = f"all of {JUDGED} test subjects or more"
    yield _covered(question, float(np.mean(judged)), studies * len(judged), True)


def _covered(question: str, share: float, studies: int, is_judged: bool) -> Answer:
    error = 1.96 * math.sqrt(0.95 * 0.05 / studies)
    holds = GOAL[0] - error <= share <= GOAL[1] + error if is_judged else None
    return Answer("interval", question, "95 % hold it", f"{share:.1%} (± {error:.1%})", holds)


def held(law: Law, studies: int) -> float:
    """Return the share of studies whose interval holds the truth; a study is three seeds' predictions."""
    rng = np.random.default_rng([law.n, round(10 * law.effect)])
    names = [f"study{number}" for number in range(studies)]
    contenders = [
        {"line": ["drawn", "none", name], "subset": "fraction-100", "seeds": [0, 1, 2]} for name in names
    ]
    task = {"name": "drawn", "kind": law.kind, "size": 2 if law.kind == "binary" else 0}
    spec = {"sort": "cells", "task": task, "cohorts": ["drawn"], "folds": [0], "contenders": contenders}
    with TemporaryDirectory() as folder:
        for name in names:
            _write_predictions(Path(folder, f"{name}.tsv"), law, rng)
        table, draws = Path(folder, "scores.tsv"), Path(folder, "scores.npy")
        score(spec, Path(folder), table, draws, lambda one, *_: Path(folder, f"{one.line[2]}.tsv"))
        rows = [row for row in read_tsv(table) if row["metric"] == law.metric]
    assert all(row["ci_low"] != MISSING for row in rows)
    return float(np.mean([float(row["ci_low"]) <= law.truth <= float(row["ci_high"]) for row in rows]))


def _write_predictions(path: Path, law: Law, rng: np.random.Generator) -> None:
    """Write what three seeds predict: half of the variance of their errors is the subjects' own."""
    n = law.n
    y = np.arange(n) % 2 if law.kind == "binary" else rng.normal(65, AGE_SD, n)
    errors = (rng.normal(size=n) + rng.normal(size=(3, n))) / math.sqrt(2)
    errors *= 1 + law.apart * rng.normal(size=(3, 1))
    predicted = law.effect * y + errors if law.kind == "binary" else y + law.effect * errors
    write_tsv(
        path,
        [
            {"subset": "fraction-100", "seed": seed, "fold": 0, "split": "test", "scan_id": i, "subject": i,
             "y": y[i], "score": predicted[seed, i]}
            for seed in range(3)
            for i in range(n)
        ],
        ("subset", "seed", "fold", "split", "scan_id", "subject", "session", "y", "score"),
    )  # fmt: skip


# -- the page --------------------------------------------------------------------------------------


def answers(parts: Sequence[str], cohorts: int, studies: int, processes: int) -> Iterator[Answer]:
    if {"effect", "order"} & set(parts):
        found = outcomes(LEVELS, cohorts, processes, list(METHODS))
        yield from effects(found) if "effect" in parts else ()
        yield from order(found) if "order" in parts else ()
    yield from leaks(cohorts, processes) if "leak" in parts else ()
    yield from sites(cohorts, processes) if "site" in parts else ()
    yield from coverage(studies, processes) if "interval" in parts else ()


def main() -> int:
    """Print and write the answers; return the number of wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=10, help="simulated cohorts of each sort")
    parser.add_argument("--studies", type=int, default=1000, help="drawn studies for each interval")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("results/validate"))
    options = parser.parse_args()
    started, used = time.monotonic(), time.process_time()
    found = list(answers(options.parts, options.cohorts, options.studies, options.processes))
    rows = [
        [one.part, one.question, one.planted, one.found, {True: "yes", False: "NO", None: "-"}[one.holds]]
        for one in found
    ]
    caption = (
        f"Simulated data: what was planted and what the benchmark found, {options.cohorts} cohorts of each "
        f"sort and {options.studies} studies for each interval."
    )
    write_csv(options.out / "validate.csv", [dict(zip(COLUMNS, row, strict=True)) for row in rows], COLUMNS)
    sheet = Sheet(
        "validate", caption, ("Part", "Question", "Planted", "Found", "Holds"), rows, NOTES, text_columns=5
    )
    write_sheet(sheet, options.out)
    print(markdown(sheet))
    print(f"{time.monotonic() - started:.0f} s; {_processor_seconds() - used:.0f} s of processor time")
    return sum(one.holds is False for one in found)


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
