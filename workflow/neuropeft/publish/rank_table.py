"""The table of ranks: how methods that start from the same weights stand over tasks, cohorts and subsets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from neuropeft.config import Backbone, Config, Method, label_of_kind
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.files import MISSING
from neuropeft.publish.sheet import Sheet
from neuropeft.subsets import Subset
from neuropeft.tasks.base import Array

FEWEST = 3  # methods that are worth a ranking
COLUMNS = (
    "backbone",
    "pretraining",
    "method",
    "mean_rank",
    "ci_low",
    "ci_high",
    "behind_low",
    "behind_high",
    "blocks",
)
SAME = " ="
NOTES = (
    "Rank 1 is the best by the first metric of the task; ties share a rank. A block is a task, cohort and "
    "subset; those count in which all methods of a list have all their seeds.",
    "95 % interval of the mean rank: subjects are drawn anew, the same for all methods, and ranked anew in "
    "each draw. Blocks that share subjects or training data are not independent, so it is too narrow as a "
    "statement about other tasks.",
    "=: not shown to be behind the first; the interval of the paired difference of mean ranks holds 0.",
)
Block = tuple[str, str, Subset]  # task, cohort, subset
Record = dict[str, Any]


def rank_records(config: Config, scores: Sequence[Score]) -> list[Record]:
    """Return a row for each method: those of a backbone and start together, the best mean rank first.

    A row holds `COLUMNS`, and the rank in each block by the block's name. Lists of fewer than `FEWEST`
    methods are left out, and so are methods that lack a block which others of their list have in common.
    """
    starts: dict[str, dict[str, None]] = {}  # of each backbone, in their order
    for score in scores:
        starts.setdefault(score.contender.backbone, {})[score.contender.pretraining] = None
    lists: dict[tuple[str, str], dict[str, dict[Block, Score]]] = {}
    for score in scores:
        one = score.contender
        if one.is_method and score.metric == primary_metric(config.tasks[one.task]).name:
            # What takes no weights is in all lists of its backbone.
            anywhere = config.methods[one.method].start == "none"
            for start in starts[one.backbone] if anywhere else [one.pretraining]:
                methods = lists.setdefault((one.backbone, start), {})
                methods.setdefault(one.method, {})[one.task, score.cohort, one.subset] = score
    found: list[Record] = []
    for (backbone, start), methods in lists.items():
        every = dict.fromkeys(block for of_method in methods.values() for block in of_method)
        blocks = [block for block in every if all(_ranks(of.get(block)) for of in methods.values())]
        if len(methods) >= FEWEST and blocks:
            rows = _ranked(methods, blocks)
            found += [{"backbone": backbone, "pretraining": start, **row} for row in rows]
    return found


def _ranks(score: Score | None) -> bool:
    return score is not None and score.complete and score.draws is not None


def _ranked(methods: Mapping[str, Mapping[Block, Score]], blocks: Sequence[Block]) -> list[Record]:
    names = list(methods)
    means = np.array(
        [_rank([methods[name][block] for name in names]) for block in blocks]
    )  # [blocks, methods]
    drawn = np.mean(
        [_rank_draws([methods[name][block] for name in names]) for block in blocks], axis=0
    )  # [methods, draws]
    order = np.argsort(means.mean(axis=0), kind="stable")
    rows = []
    for place in order:
        low, high = percentile_interval(drawn[place])
        behind_low, behind_high = percentile_interval(drawn[place] - drawn[order[0]])
        numbers = (means[:, place].mean(), low, high, behind_low, behind_high, len(blocks))
        row = dict(zip(COLUMNS[3:], map(float, numbers), strict=True))
        ranks = {_name(block): float(rank) for block, rank in zip(blocks, means[:, place], strict=True)}
        rows.append({"method": names[place], **row, "blocks": len(blocks), **ranks})
    return rows


def _rank(some: Sequence[Score]) -> Array:
    """Return the ranks of scores of one block, [methods]; 1 is the best."""
    values = np.array([score.mean for score in some])
    return rankdata(-values if some[0].higher_is_better else values)


def _rank_draws(some: Sequence[Score]) -> Array:
    """Return the ranks in each bootstrap draw, [methods, draws]; a draw without values ranks all the same."""
    drawn = np.nan_to_num(np.stack([score.draws for score in some if score.draws is not None]).astype(float))
    return rankdata(-drawn if some[0].higher_is_better else drawn, axis=0)


def _name(block: Block) -> str:
    task, cohort, subset = block
    return f"{task}, {cohort}, {subset.label}"


def rank_columns(records: Sequence[Record]) -> list[str]:
    """Return the columns of the rows."""
    return list(dict.fromkeys([*COLUMNS, *(name for record in records for name in record)]))


def rank_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method: its mean rank, then that of each block."""
    blocks = [name for name in rank_columns(records) if name not in COLUMNS]
    body = [
        [
            label_of_kind(Backbone, row["backbone"]),
            row["pretraining"],
            label_of_kind(Method, row["method"]),
            f"{row['mean_rank']:.1f}" + SAME * (row["behind_low"] <= 0),
            f"{row['ci_low']:.1f} to {row['ci_high']:.1f}",
            *(f"{row[name]:g}" if name in row else MISSING for name in blocks),
        ]
        for row in records
    ]
    parts = [row[:2] for row in body]
    return Sheet(
        "ranks",
        "Mean ranks of methods that start from the same weights.",
        ("Backbone", "Start", "Method", "Mean rank", "95 % interval", *blocks),
        body,
        NOTES,
        frozenset(index for index in range(1, len(body)) if parts[index] != parts[index - 1]),
        text_columns=3,
    )
