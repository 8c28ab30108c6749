"""The table of ranks: how methods that start from the same weights stand over tasks, cohorts and subsets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from neuropeft.config import Config
from neuropeft.evaluate.blocks import Block, Ranking, rankings, ranks
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.compare import tie_groups
from neuropeft.evaluate.scores import Score
from neuropeft.publish.cells import Column, intervals, lay_out, numbers, starts
from neuropeft.publish.sheet import Sheet
from neuropeft.tasks.base import Array

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
TIES = (
    "Group 1 is the best and all that are not shown to be worse (paired, Holm), group 2 the best of the "
    "others and those not shown to be worse than it, and so on."
)
NOTES = (
    "Rank 1 is the best by the first metric of the task; ties share a rank. A block is a task, cohort and "
    "subset; those count in which all methods of a list have all their seeds.",
    "95 % interval of the mean rank: subjects are drawn anew, the same for all methods, and ranked anew in "
    "each draw. Blocks that share subjects or training data are not independent, so it is too narrow as a "
    "statement about other tasks.",
    "=: not shown to be behind the first; the interval of the paired difference of mean ranks holds 0.",
    f"Columns of blocks: tie groups. {TIES}",
)
Record = dict[str, Any]


def rank_records(config: Config, scores: Sequence[Score]) -> list[Record]:
    """Return a row for each method: those of a backbone and start together, the best mean rank first.

    A row holds `COLUMNS`, and the tie group in each block by the block's name. Lists of fewer than `FEWEST`
    methods are left out, and so are methods that lack a block which others of their list have in common.
    """
    return [
        {"backbone": one.backbone, "pretraining": one.pretraining, **row}
        for one in rankings(config, scores)
        for row in _ranked(one)
    ]


def _ranked(ranking: Ranking) -> list[Record]:
    blocks = ranking.blocks
    means = np.array([ranks(row) for row in ranking.scores])  # [blocks, methods]
    drawn = np.mean([_rank_draws(row) for row in ranking.scores], axis=0)  # [methods, draws]
    order = np.argsort(means.mean(axis=0), kind="stable")
    rows = []
    groups = [tie_groups(row) for row in ranking.scores]
    for place in order:
        low, high = percentile_interval(drawn[place])
        behind_low, behind_high = percentile_interval(drawn[place] - drawn[order[0]])
        numbers = (means[:, place].mean(), low, high, behind_low, behind_high, len(blocks))
        row = dict(zip(COLUMNS[3:], map(float, numbers), strict=True))
        of_blocks = {
            _name(block): group[id(scores[place])]
            for block, group, scores in zip(blocks, groups, ranking.scores, strict=True)
        }
        rows.append({"method": ranking.methods[place], **row, "blocks": len(blocks), **of_blocks})
    return rows


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
    """Lay out a line for each method: its mean rank, then its tie group in each block."""
    blocks = [name for name in rank_columns(records) if name not in COLUMNS]
    columns = (
        *starts(),
        Column("Mean rank", lambda row: f"{row['mean_rank']:.1f}" + SAME * (row["behind_low"] <= 0)),
        intervals("ci", ".1f"),
        *(numbers(name, name, "g") for name in blocks),
    )
    caption = "Mean ranks of methods that start from the same weights."
    return lay_out("ranks", caption, columns, records, NOTES, parts=2)
