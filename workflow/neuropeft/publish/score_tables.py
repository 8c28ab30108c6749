"""Tables 3 and 4: methods by tasks, in-domain and zero-shot, the published figure beside ours."""

import math
import statistics
from collections.abc import Mapping, Sequence

from neuropeft.config import Config
from neuropeft.contenders import OF_SEEDS, Contender, Line, backbone_label, main_backbones
from neuropeft.evaluate.against_controls import AgainstControl, against_controls
from neuropeft.evaluate.bootstrap import DRAWS
from neuropeft.evaluate.compare import BETTER, WITHIN_NOISE, WORSE, Comparison
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.files import MISSING
from neuropeft.grid import Group, used_backbones, used_tasks
from neuropeft.probe_names import PERMUTATIONS
from neuropeft.publish.labels import cohort_label, folds_text, is_simulated, seeds_text
from neuropeft.publish.published import published_notes, published_score
from neuropeft.publish.sheet import Sheet
from neuropeft.subsets import WHOLE
from neuropeft.tasks import kind_of
from neuropeft.tasks.base import Metric

NOT_IN_GRID = "-"
MARKS = {BETTER: " +", WORSE: " -", WITHIN_NOISE: " ="}
HEADER = ("Task", "Cohort", "Metric", "Figure")
NOTES = (
    "n: test subjects, one scan each (a subject's first). Mean and sample SD are over seeds; k/m marks cells "
    "where only k of m seeds have a value, n/a those without any (constant predictions have no r); - is not "
    "part of the grid.",
    "95 % interval of the mean over seeds: of an AUC of two classes that of DeLong over test subjects, else "
    f"percentile bootstrap over test subjects and seeds ({DRAWS:,} draws); few seeds tell their own spread "
    "badly, and another training set may do otherwise.",
    "+ better, - worse, = within noise of the reference from the same weights: paired, corrected by Holm "
    "within the task (see the table of comparisons).",
    "Balanced accuracy: threshold chosen on validation (Youden), frozen for test and zero-shot cohorts. Of "
    "more than two classes, that whose probability exceeds its frequency in training most.",
    "Trainable parameters: of the network without its head, which every method trains.",
    "Frozen: ridge or logistic regression, or nearest neighbours, on the tokens of a frozen backbone, "
    "pretrained or untrained (random weights). p: share of the fit and its "
    f"{PERMUTATIONS} refits on permuted training labels that did at least as well.",
    "Best control: that of the best mean, of the controls, the probes of a method's frozen backbone and its "
    "untrained twin. below: the method is worse than that; within noise: the paired 95 % interval over "
    "subjects of their difference holds 0. A method that is below has shown no use.",
    "Controls use the training subjects that the methods of their task use. Predict the mean: training mean "
    "or class frequency. Mean label map: regions where most of them have these. Linear models: ridge or "
    "logistic regression on age and sex, on sex and site, on region volumes that the cohort brings along, or "
    "on voxels averaged to 10 x 10 x 10.",
)
FOLDS_NOTE = (
    "{}-fold: every subject is tested on once per seed. In the training cohort the predictions of a seed's "
    "folds are pooled, each row with its own fold's threshold, and scored once; a zero-shot cohort is tested "
    "on by the model of each fold, and the seed's value is the mean over them. A seed that lacks a fold has "
    "no value."
)


def table_backbones(config: Config, table: int) -> list[str]:
    """Return the backbones of table 3 (the first one, and what stands beside) or table 4 (the others)."""
    valid = used_backbones(config)
    order = dict.fromkeys(backbone for block in config.grid for backbone in block.backbones)
    used = [name for name in order if name in valid]
    first, *others = main_backbones(config)
    return others if table == 4 else [first, *(name for name in used if name not in (first, *others))]


def select(config: Config, scores: Sequence[Score], table: int) -> list[Score]:
    """Return scores of a table's backbones and of the controls, with each task's largest subset.

    Ensembles of seeds, one for each method, are left to their own table.
    """
    backbones = table_backbones(config, table)
    chosen = []
    for task in used_tasks(config):
        of_task = [score for score in scores if score.contender.task == task]
        of_backbones = [
            score
            for score in of_task
            if score.contender.backbone in backbones and not score.contender.method.endswith(OF_SEEDS)
        ]
        trained = [score.contender.subset for score in of_backbones if score.contender.sort == "cells"]
        if trained:
            shown = [*of_backbones, *(score for score in of_task if score.contender.sort == "controls")]
            chosen += [score for score in shown if score.contender.subset == max(trained)]
    return chosen


def score_sheet(
    config: Config,
    scores: Sequence[Score],
    compared: Sequence[Comparison],
    trainable: Mapping[Group, int],
    table: int,
) -> Sheet:
    """Lay out table 3 or 4 for readers: a column per method, a line per task, cohort, metric and figure."""
    marks = {id(one.score): MARKS[one.verdict] for one in compared}
    shown = select(config, scores, table)
    if not shown:
        caption = "Empty: the grid has no further backbone."
        return Sheet(f"table{table}", caption, HEADER, (), (), text_columns=4)
    columns = _columns(shown)
    against = {id(one.score): one for one in against_controls(shown)}
    rows: list[list[str]] = []
    breaks = set()
    for task in dict.fromkeys(score.contender.task for score in shown):
        breaks.add(len(rows))
        of_task = [score for score in shown if score.contender.task == task]
        rows += _task_rows(config, of_task, list(columns), trainable, marks, against)
    labels = [f"{one.owner}\n{one.name}" for one in columns.values()]
    return Sheet(
        f"table{table}",
        _caption(config, shown, table),
        (*HEADER, *labels),
        _without_repeats(rows),
        [*_notes(config), *published_notes(config, shown), *_seed_notes(config, shown)],
        frozenset(breaks),
        text_columns=4,
    )


def _notes(config: Config) -> list[str]:
    notes = list(NOTES)
    if config.splits.folds:
        notes.insert(1, FOLDS_NOTE.format(config.splits.folds))
    return notes


def _seed_notes(config: Config, shown: Sequence[Score]) -> list[str]:
    """Say of each task how far apart seeds of one method are, beside how far apart methods are."""
    notes = []
    for task in dict.fromkeys(score.contender.task for score in shown):
        metric = primary_metric(config.tasks[task])
        tuned = [
            score
            for score in shown
            if (score.contender.task, score.metric, score.zero_shot) == (task, metric.name, False)
            and score.values
            and score.contender.is_method
        ]
        of_seeds = [score.sd for score in tuned if math.isfinite(score.sd)]
        if not of_seeds or len(tuned) < 2:
            continue
        seeds = math.sqrt(sum(sd**2 for sd in of_seeds) / len(of_seeds))
        methods = statistics.stdev(score.mean for score in tuned)
        verdict = (
            "less: the order of methods is not chance of the seeds alone"
            if seeds < methods
            else "not less: the order of methods may be chance of the seeds"
        )
        notes.append(
            f"{task}: {metric.title(config.tasks[task].unit)} differs by {seeds:.2g} (SD) between seeds "
            f"of one method and by {methods:.2g} between the methods' means; seeds differ {verdict}."
        )
    return notes


def _columns(shown: Sequence[Score]) -> dict[Line, Contender]:
    """Return methods within backbones, both in the configuration's order, then probes, then controls."""
    in_order = sorted((score.contender for score in shown), key=lambda contender: contender.place)
    return {contender.line: contender for contender in in_order}


def _task_rows(
    config: Config,
    scores: Sequence[Score],
    columns: Sequence[Line],
    trainable: Mapping[Group, int],
    marks: Mapping[int, str],
    against: Mapping[int, AgainstControl],
) -> list[list[str]]:
    name = scores[0].contender.task
    task = config.tasks[name]
    by_place = {(score.contender.line, score.cohort, score.metric): score for score in scores}
    subset = scores[0].contender.subset
    label = name if subset == WHOLE else f"{name} ({subset.text})"
    counts = [trainable.get((name, *column, subset)) for column in columns]
    rows = [
        [label, "", "trainable parameters", "", *(NOT_IN_GRID if c is None else f"{c:,}" for c in counts)]
    ]
    for cohort in (task.train, *task.zero_shot):
        for metric in kind_of(task).metrics:
            line = [by_place.get((column, cohort, metric.name)) for column in columns]
            rows += _metric_rows(config, line, cohort, metric, marks, against)
    for row in rows[1:]:
        row[0] = label
    return rows


def _metric_rows(
    config: Config,
    line: Sequence[Score | None],
    cohort: str,
    metric: Metric,
    marks: Mapping[int, str],
    against: Mapping[int, AgainstControl],
) -> list[list[str]]:
    present = [score for score in line if score is not None]
    task = config.tasks[present[0].contender.task]
    n = max((score.n for score in present if score.n is not None), default=None)
    place = cohort_label(config, cohort) + (", zero-shot" if present[0].zero_shot else "")
    place += f", n = {MISSING if n is None else n}"
    better = "higher" if metric.higher_is_better else "lower"
    head = ["", place, f"{metric.title(task.unit)}, {better} is better"]
    seeds = max(len(score.contender.seeds) for score in present)
    means = [_cell(score, seeds, n) + marks.get(id(score), "") for score in line]
    rows = [
        [*head, f"mean (SD), {seeds_text(config, seeds)}", *means],
        [*head, "95 % interval", *(_interval(score) for score in line)],
    ]
    if metric == primary_metric(task) and any(math.isfinite(score.p_permutation) for score in present):
        rows.append([*head, "p, permuted labels", *(_chance(score) for score in line)])
    stands = [against.get(id(score)) for score in line]
    if metric == primary_metric(task) and any(stands):
        rows.append(
            [*head, "best control", *(f"{one.verdict}: {one.name}" if one else NOT_IN_GRID for one in stands)]
        )
    published = [published_score(config, score) if score else None for score in line]
    if any(published):
        rows.append([*head, "published", *(mean_sd(*pair) if pair else NOT_IN_GRID for pair in published)])
    return rows


def _without_repeats(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Blank task, cohort and metric where they repeat the row above."""
    shown = []
    above: Sequence[str] = ()
    for row in rows:
        same = next((i for i in range(3) if not above or row[i] != above[i]), 3)
        shown.append([""] * same + list(row[same:]))
        above = row
    return shown


def _cell(score: Score | None, seeds: int, n: int | None) -> str:
    if score is None:
        return NOT_IN_GRID
    done = f"{len(score.values)}/{len(score.contender.seeds)}"
    if not score.values:
        return f"{MISSING} ({done})"
    text = mean_sd(score.mean, score.sd)
    if not score.complete or len(score.contender.seeds) != seeds:
        text += f" {done}"
    return text if score.n == n else f"{text} n = {score.n}"


def mean_sd(mean: float, sd: float) -> str:
    """Return `0.8619 (0.0241)`; the SD of a single seed is n/a."""
    return f"{mean:.4f} ({MISSING if math.isnan(sd) else f'{sd:.4f}'})"


def _interval(score: Score | None) -> str:
    if score is None:
        return NOT_IN_GRID
    return MISSING if math.isnan(score.ci_low) else f"{score.ci_low:.3f} to {score.ci_high:.3f}"


def _chance(score: Score | None) -> str:
    return NOT_IN_GRID if score is None or math.isnan(score.p_permutation) else f"{score.p_permutation:.3f}"


def _caption(config: Config, shown: Sequence[Score], table: int) -> str:
    backbones = " and ".join(backbone_label(config, name) for name in table_backbones(config, table))
    done: dict[Contender, int] = {}
    for score in shown:
        one = score.contender
        if one.sort == "cells" and score.metric == primary_metric(config.tasks[one.task]).name:
            done[one] = min(len(score.values), done.get(one, len(one.seeds)))
    folds = len(config.splits.fold_numbers)
    wanted = folds * sum(len(one.seeds) for one in done)
    text = (
        f"{backbones}, methods by tasks, in-domain and zero-shot; {folds * sum(done.values())} of {wanted} "
        "cells have scores."
    )
    if config.splits.folds:
        text += f" Cross-validation, {folds_text(config)}."
    simulated = sorted({score.cohort for score in shown if is_simulated(config, score.cohort)})
    if simulated:
        text += f" Simulated data: {', '.join(simulated)}; nothing here says anything about real brains."
    return text
