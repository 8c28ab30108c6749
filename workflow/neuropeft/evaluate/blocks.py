"""Blocks that methods are ranked over: a task, cohort and subset in which all have all their seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from neuropeft.config import Config
from neuropeft.contenders import MEAN
from neuropeft.evaluate.compare import where
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.subsets import Subset
from neuropeft.tasks.base import Array

FEWEST = 3  # methods that are worth a ranking
Block = tuple[str, str, Subset]  # task, cohort, subset


@dataclass(frozen=True)
class Ranking:
    """Methods that start from the same weights, and the blocks that they have in common."""

    backbone: str  # their backbone
    pretraining: str  # what they start from
    methods: tuple[str, ...]  # their names, in the order of the scores
    blocks: tuple[Block, ...]  # the common blocks
    scores: Sequence[Sequence[Score]]  # the primary metric of each block and method, [blocks][methods]

    @property
    def cohorts(self) -> list[str]:
        """The cohorts that the blocks are tested on: blocks of one cohort share subjects."""
        return list(dict.fromkeys(cohort for _, cohort, _ in self.blocks))


def rankings(config: Config, scores: Sequence[Score]) -> list[Ranking]:
    """Return the lists of at least `FEWEST` methods, one for each backbone and start.

    What takes no weights is in all lists of its backbone. A list without a common block is left out.
    """
    starts: dict[str, dict[str, None]] = {}  # of each backbone, in their order
    for score in scores:
        starts.setdefault(score.contender.backbone, {})[score.contender.pretraining] = None
    lists: dict[tuple[str, str], dict[str, dict[Block, Score]]] = {}
    for score in scores:
        one = score.contender
        if one.is_method and score.metric == primary_metric(config.tasks[one.task]).name:
            anywhere = config.methods[one.method].start == "none"
            for start in starts[one.backbone] if anywhere else [one.pretraining]:
                methods = lists.setdefault((one.backbone, start), {})
                methods.setdefault(one.method, {})[one.task, score.cohort, one.subset] = score
    found = []
    for (backbone, start), methods in lists.items():
        blocks = _common(methods)
        if len(methods) >= FEWEST and blocks:
            rows = [[of_method[block] for of_method in methods.values()] for block in blocks]
            found.append(Ranking(backbone, start, tuple(methods), blocks, rows))
    return found


def _common(methods: Mapping[str, Mapping[Block, Score]]) -> tuple[Block, ...]:
    every = dict.fromkeys(block for of_method in methods.values() for block in of_method)
    return tuple(
        block
        for block in every
        if all(block in of_method and of_method[block].complete for of_method in methods.values())
    )


def ranks(some: Sequence[Score]) -> Array:
    """Return the ranks of scores of one block, [methods]; 1 is the best, ties share a rank."""
    return rankdata([score.order for score in some])


def guesses(scores: Sequence[Score]) -> dict[tuple[object, ...], float]:
    """Return the scores of predicting the training mean, by task, subset, cohort and metric."""
    return {
        where(score): score.mean
        for score in scores
        if score.contender.sort == "controls" and score.contender.method == MEAN and score.complete
    }


def on_one_scale(config: Config, ranking: Ranking, scores: Sequence[Score]) -> Array:
    """Return the scores of a ranking so that tasks can be compared, [blocks, methods]; higher is better.

    Errors in the unit of a target are divided by that of predicting the training mean, and become 1 minus
    that share; a block without that control is NaN. What is no error in a unit is taken as it is, or
    subtracted from 1 where lower is better.
    """
    trivial = guesses(scores)
    rows = []
    for (task, cohort, subset), row in zip(ranking.blocks, ranking.scores, strict=True):
        metric = primary_metric(config.tasks[task])
        values = np.array([score.mean for score in row])
        if metric.in_unit:
            values = values / trivial.get((task, subset, cohort, metric.name), np.nan)
        rows.append(values if metric.higher_is_better else 1 - values)
    return np.array(rows)
