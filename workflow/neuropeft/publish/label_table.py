"""The table of labels: how well each label of a task with several is found, beside the means of table 3."""

import math
from collections.abc import Sequence

from neuropeft.config import Config, SegmentationTask
from neuropeft.contenders import Contender
from neuropeft.evaluate.scores import Score
from neuropeft.files import MISSING
from neuropeft.publish.cells import part_breaks
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.published import published_notes, published_score
from neuropeft.publish.score_tables import NOT_IN_GRID, select
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks import kind_of

HEADER = ("Task", "Cohort", "Label", "Metric")
NOTE = (
    "Mean over seeds (95 % interval) over the test subjects of whom the label is known for certain. - is not "
    "part of the grid; n/a has no value: nothing is predicted, or the label is not both present and absent."
)
GUESSING = (
    "Guessing has an AUC of 0.5 and, as its average precision, the frequency of the label: what the control "
    "has that predicts the mean."
)
OF_REGIONS = (
    "Labels of a segmentation are regions. Of two empty ones Dice and surface Dice are 1 and HD95 is 0; if "
    "only one is empty, they are 0, and HD95 is the diagonal of the image."
)


def label_scores(config: Config, scores: Sequence[Score]) -> list[Score]:
    """Return the scores of single labels, with each task's largest subset."""
    chosen = {id(score): score for table in (3, 4) for score in select(config, scores, table)}
    return [score for score in chosen.values() if score.metric in _parts(config, score)]


def _parts(config: Config, score: Score) -> dict[str, tuple[str, str]]:
    """Return label and title of the metrics of single labels, by their names."""
    task = config.tasks[score.contender.task]
    parts = kind_of(task).parts
    return {one.name: (task.part_names[one.part], one.label) for one in parts if one.part is not None}


def label_sheet(config: Config, scores: Sequence[Score]) -> Sheet:
    """Lay out a line for each label and metric, and a column for each contender."""
    shown = label_scores(config, scores)
    contenders = sorted((score.contender for score in shown), key=lambda one: one.place)
    columns: dict[tuple[str, ...], Contender] = {one.line: one for one in contenders}
    lines: dict[tuple[str, str, str], dict[tuple[str, ...], Score]] = {}
    for score in shown:
        place = score.contender.task, score.cohort, score.metric
        lines.setdefault(place, {})[score.contender.line] = score
    rows = []
    for (task, cohort, metric), found in lines.items():
        label, title = _parts(config, next(iter(found.values())))[metric]
        of_columns = [found.get(line) for line in columns]
        head = [task, cohort_label(config, cohort), label]
        rows.append([*head, title, *(_cell(score) for score in of_columns)])
        published = [score and published_score(config, score) for score in of_columns]
        if any(published):
            texts = (f"{pair[0]:.3f}" if pair else NOT_IN_GRID for pair in published)
            rows.append([*head, f"{title}, published", *texts])
    segments = {isinstance(config.tasks[task], SegmentationTask) for task, *_ in lines}
    notes = (
        *(NOTE, *([GUESSING] if False in segments else []), *([OF_REGIONS] if True in segments else [])),
        *published_notes(config, shown),
    )
    return Sheet(
        "labels",
        "Single labels of tasks with several.",
        (*HEADER, *(f"{one.owner}\n{one.name}" for one in columns.values())),
        rows,
        notes,
        part_breaks(rows, 2),
        text_columns=len(HEADER),
    )


def _cell(score: Score | None) -> str:
    if score is None:
        return NOT_IN_GRID
    if math.isnan(score.mean):
        return MISSING
    return f"{score.mean:.3f} ({score.ci_low:.3f} to {score.ci_high:.3f})"
