"""The table of test-retest: how far apart predictions are of two scans of the same person."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuropeft import layout
from neuropeft.config import Config
from neuropeft.evaluate.retest import FEWEST, read_pairs, repeatability
from neuropeft.grid import names_of
from neuropeft.publish.cells import intervals, lay_out, numbers, places, plain
from neuropeft.publish.records import GROUP_COLUMNS, about
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks import kind_of
from neuropeft.variants import varied_methods

COLUMNS = (
    *(*GROUP_COLUMNS, "cohort", "zero_shot", "pairs", "within_sd", "within_sd_low", "within_sd_high"),
    *("icc", "icc_low", "icc_high"),
)
NOTES = (
    "The first two scans, by session, of each test subject. Values: of the errors, since a person ages "
    "between scans. Classes: of the probabilities, of subjects of the same class at both.",
    "SD within: root of the mean of half the squared differences, over subjects and seeds; two predictions "
    "of a person differ by less than 2.8 of it in 95 % of pairs. ICC(1,1): share of the variance that lies "
    "between persons (Shrout & Fleiss 1979), mean over seeds. What predicts the same of all has a small "
    "SD, and no ICC.",
    "95 % intervals: percentile bootstrap over subjects. What happened to a person between two scans counts "
    "as noise here: scans that are years apart say little.",
)
Record = dict[str, Any]


def retest_records(config: Config, results: Path) -> list[Record]:
    """Return a row, with the columns `COLUMNS`, for each method and cohort of enough pairs of scans."""
    rows = []
    for one in varied_methods(config):
        task = config.tasks[one.task]
        for cohort in (task.train, *task.zero_shot):
            path = layout.PREDICTIONS.at(results, **names_of(one.group[:4]), cohort=cohort)
            pairs = read_pairs(path, kind_of(task), one.subset, cohort == task.train)
            if pairs.shape[1] >= FEWEST:
                row = about(one, cohort, cohort != task.train)
                rows.append(row | {"pairs": pairs.shape[1]} | repeatability(pairs))
    return sorted(
        rows, key=lambda row: (list(config.tasks).index(row["task"]), row["zero_shot"], row["cohort"])
    )


def retest_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and cohort."""
    columns = (
        *places(config, metric=False),
        plain("Pairs", "pairs"),
        numbers("SD within", "within_sd", ".3g"),
        intervals("within_sd", ".3g"),
        numbers("ICC", "icc", ".3f"),
        intervals("icc", ".3f"),
    )
    caption = "How far apart predictions are of two scans of the same person."
    empty = f"Empty: no task has {FEWEST} test subjects with two scans in a cohort."
    return lay_out("retest", caption if records else empty, columns, records, NOTES, parts=2)
