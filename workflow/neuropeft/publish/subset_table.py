"""The table of subsets: methods of each start by how much they learn from, beside full fine-tuning."""

from collections.abc import Sequence

from neuropeft.config import Config
from neuropeft.contenders import Line, backbone_label
from neuropeft.evaluate.compare import Comparison
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.files import MISSING
from neuropeft.grid import NO_PRETRAINING
from neuropeft.publish.published import published_notes, published_score
from neuropeft.publish.score_tables import NOT_IN_GRID, mean_sd
from neuropeft.publish.sheet import Sheet
from neuropeft.subsets import Subset

HEADER = ("Backbone", "Start", "Method", "Figure")
SAME = " ="
NOTES = (
    "The first metric of each task on its training cohort, mean (SD) over seeds; one seed has no SD. - is "
    "not part of the grid; k/m marks cells where only k of m seeds have a value.",
    "over full: the mean less that of full fine-tuning of the same backbone, start and subset, and its "
    "paired 95 % interval over test subjects. =: within noise (Holm within the task, see the table of "
    "comparisons).",
)
Column = tuple[str, Subset]  # task and subset
Found = dict[Line, dict[Column, Score]]


def subset_sheet(config: Config, scores: Sequence[Score], compared: Sequence[Comparison]) -> Sheet:
    """Lay out lines for each method, a column for each task and subset; empty if no task has several."""
    shown = subset_scores(config, scores)
    columns = sorted(
        {(score.contender.task, score.contender.subset) for score in shown},
        key=lambda column: (list(config.tasks).index(column[0]), column[1]),
    )
    if len(columns) == len({task for task, _ in columns}):
        return Sheet(
            "subsets", "Empty: no task has several subsets.", HEADER, (), (), text_columns=len(HEADER)
        )
    found: Found = {}
    for score in sorted(shown, key=_place):
        found.setdefault(score.contender.line, {})[score.contender.task, score.contender.subset] = score
    differences = {id(one.score): one for one in compared}
    rows: list[list[str]] = []
    breaks = set()
    for of_line in found.values():
        name = _name(config, next(iter(of_line.values())))
        if not rows or rows[-1][:2] != name[:2]:
            breaks.add(len(rows))
        cells = [of_line.get(column) for column in columns]
        for figure, texts in _figures(config, cells, differences, found).items():
            rows.append([*name, figure, *texts])
    metrics = {task: primary_metric(config.tasks[task]) for task, _ in columns}
    titles = [
        f"{task}, {metrics[task].title(config.tasks[task].unit)}\n{subset.label}" for task, subset in columns
    ]
    return Sheet(
        "subsets",
        "Methods by the share of the training subjects that they learn from.",
        (*HEADER, *titles),
        rows,
        [*NOTES, *published_notes(config, shown)],
        frozenset(breaks),
        text_columns=len(HEADER),
    )


def subset_scores(config: Config, scores: Sequence[Score]) -> list[Score]:
    """Return the scores that the table shows: of methods, by the first metric, on the training cohort."""
    first = {name: primary_metric(task).name for name, task in config.tasks.items()}
    return [
        score
        for score in scores
        if score.contender.is_method and score.metric == first[score.contender.task] and not score.zero_shot
    ]


def _place(score: Score) -> tuple[int, ...]:
    """Sort by backbone, start, then method."""
    _, backbone, method, start = score.contender.place
    return backbone, start, method


def _name(config: Config, score: Score) -> list[str]:
    one = score.contender
    start = NOT_IN_GRID if one.pretraining == NO_PRETRAINING else one.pretraining
    return [backbone_label(config, one.backbone), start, one.short]


def _figures(
    config: Config, cells: Sequence[Score | None], differences: dict[int, Comparison], found: Found
) -> dict[str, list[str]]:
    """Return the lines of a method, {what is shown: a text per column}, without lines that hold nothing."""
    published = [score and published_score(config, score) for score in cells]
    over = [differences.get(id(score)) for score in cells]
    lines = {"mean (SD)": [_mean(score) for score in cells]}
    if any(over):
        lines["over full"] = [_difference(one) for one in over]
    if any(published):
        lines["published"] = [mean_sd(*one) if one else NOT_IN_GRID for one in published]
    if any(over) and any(published):
        lines["published, over full"] = [_published_difference(config, one, found) for one in over]
    return lines


def _mean(score: Score | None) -> str:
    if score is None:
        return NOT_IN_GRID
    done = "" if score.complete else f" {len(score.values)}/{len(score.contender.seeds)}"
    return (mean_sd(score.mean, score.sd) if score.values else MISSING) + done


def _difference(one: Comparison | None) -> str:
    if one is None:
        return NOT_IN_GRID
    mark = SAME if one.within_noise else ""
    return f"{one.difference:+.3f}{mark} ({one.ci_low:+.3f} to {one.ci_high:+.3f})"


def _published_difference(config: Config, one: Comparison | None, found: Found) -> str:
    if one is None:
        return NOT_IN_GRID
    contender = one.score.contender
    backbone, start, method = one.reference.split("/")
    reference = found[backbone, start, method][contender.task, contender.subset]
    both = [published_score(config, score) for score in (one.score, reference)]
    ours, theirs = both
    return f"{ours[0] - theirs[0]:+.3f}" if ours and theirs else NOT_IN_GRID
