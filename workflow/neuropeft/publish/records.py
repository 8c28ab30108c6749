"""Tidy rows: every score with its spread, interval, comparison and cost, and the cost of every cell."""

from collections.abc import Sequence
from typing import Any

from neuropeft.cells.costs import COST_KEYS, Costs, trainable_parameters
from neuropeft.config import Config
from neuropeft.contenders import Contender
from neuropeft.evaluate.against_controls import against_controls
from neuropeft.evaluate.compare import Comparison, holm
from neuropeft.evaluate.scores import Score
from neuropeft.grouping import grouped
from neuropeft.publish.cost_table import estimated_seconds
from neuropeft.publish.labels import is_simulated, metric_name
from neuropeft.publish.published import published_score

SCORE_COLUMNS = (
    "task",
    "cohort",
    "zero_shot",
    "backbone",
    "pretraining",
    "method",
    "subset",
    "metric",
    "mean",
    "sd",
    "seeds",
    "seeds_expected",
    "folds",
    "n",
    "ci_low",
    "ci_high",
    "published_mean",
    "published_sd",
    "trainable",
    "simulated",
    "reference",
    "difference",
    "difference_ci_low",
    "difference_ci_high",
    "p",
    "p_holm",
    "verdict",
    "within_noise",
    "best_control",
    "over_control",
    "over_control_ci_low",
    "over_control_ci_high",
    "below_control",
    "null_mean",
    "p_permutation",
    "seed_values",
    "reason",
)
GROUP_COLUMNS = ("task", "backbone", "pretraining", "method", "subset")
CELL_COLUMNS = (*GROUP_COLUMNS, "seed", "fold")
_SECONDS = COST_KEYS.index("train_seconds")
COST_COLUMNS = (*CELL_COLUMNS, "status", *COST_KEYS[:_SECONDS], "estimated_seconds", *COST_KEYS[_SECONDS:])


def about(one: Contender, cohort: str, zero_shot: bool) -> dict[str, Any]:
    """Return what a row on a contender and a cohort is about, with the columns `GROUP_COLUMNS`."""
    group = dict(zip(GROUP_COLUMNS, one.group, strict=True))
    return {**group, "cohort": cohort, "zero_shot": zero_shot, "label": one.label}


def add_holm(rows: Sequence[dict[str, Any]], *family: str) -> None:
    """Add `p_holm` to the rows that have a `p`, corrected for those that have the same values in `family`."""
    tested = [row for row in rows if "p" in row]
    for some in grouped(tested, lambda row: tuple(row[name] for name in family)).values():
        for row, p in zip(some, holm([row["p"] for row in some]), strict=True):
            row["p_holm"] = float(p)


def score_records(
    config: Config, scores: Sequence[Score], compared: Sequence[Comparison], costs: Costs
) -> list[dict[str, object]]:
    """Return one row per score, with the columns `SCORE_COLUMNS`.

    `difference` and what follows from it compare with the reference method (see `evaluate.compare`),
    `over_control` with the best control (`evaluate.against_controls`). Positive is better in every metric.
    """
    against = {id(one.score): one for one in against_controls(scores)}
    comparisons = {id(comparison.score): comparison for comparison in compared}
    trainable = trainable_parameters(costs)
    records: list[dict[str, object]] = []
    for score in scores:
        published = published_score(config, score) or (None, None)
        record: dict[str, object] = {
            **about(score.contender, score.cohort, score.zero_shot),
            "metric": metric_name(config.tasks[score.contender.task], score.metric),
            "mean": score.mean,
            "sd": score.sd,
            "seeds": len(score.values),
            "seeds_expected": len(score.contender.seeds),
            "folds": config.splits.folds,
            "n": score.n,
            "ci_low": score.ci_low,
            "ci_high": score.ci_high,
            "published_mean": published[0],
            "published_sd": published[1],
            "trainable": trainable.get(score.contender.group),
            "null_mean": score.null_mean,
            "p_permutation": score.p_permutation,
            "simulated": is_simulated(config, score.cohort),
            "seed_values": " ".join(f"{seed}={value:.6g}" for seed, value in score.values.items()) or None,
            "reason": score.reason or None,
        }
        if (comparison := comparisons.get(id(score))) is not None:
            record |= {
                "reference": comparison.reference,
                "difference": comparison.difference,
                "difference_ci_low": comparison.ci_low,
                "difference_ci_high": comparison.ci_high,
                "p": comparison.p,
                "p_holm": comparison.p_holm,
                "verdict": comparison.verdict,
                "within_noise": comparison.within_noise,
            }
        if (best := against.get(id(score))) is not None:
            record |= {
                "best_control": "/".join(best.control.contender.line),
                "over_control": best.difference,
                "over_control_ci_low": best.ci_low,
                "over_control_ci_high": best.ci_high,
                "below_control": best.is_below,
            }
        records.append(record)
    return records


def cost_records(config: Config, costs: Costs) -> list[dict[str, object]]:
    """Return one row per cell of the grid, with the columns `COST_COLUMNS`; missing cells included."""
    return [
        {**cell._asdict(), "status": "missing"}
        if cost is None
        else {
            **cell._asdict(),
            "status": "done",
            "estimated_seconds": estimated_seconds(config, cell, cost),
            **cost,
        }
        for cell, cost in costs.items()
    ]
