"""The tables of learning curves: their power laws, and how many scans the reference needs to keep up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuropeft.cells.costs import Costs, subset_sizes
from neuropeft.config import Config
from neuropeft.contenders import Line
from neuropeft.evaluate.bootstrap import percentile_interval
from neuropeft.evaluate.learning import REACH, Curve, doubled, fit, scans_to_match
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.grid import NO_PRETRAINING
from neuropeft.publish.cells import Column, interval, intervals, lay_out, numbers, places, plain
from neuropeft.publish.records import about
from neuropeft.publish.sheet import Sheet

LINE_COLUMNS = ("task", "cohort", "backbone", "pretraining", "method")
CURVE_COLUMNS = (
    *(*LINE_COLUMNS, "metric", "subsets", "scans", "exponent", "exponent_low", "exponent_high"),
    *("p_misfit", "gain", "gain_low", "gain_high", "reason"),
)
MATCH_COLUMNS = (
    *(*LINE_COLUMNS, "subset", "scans", "metric", "mean", "reference"),
    *("needed", "needed_low", "needed_high", "more", "reason"),
)
EMPTY = "Empty: no method has several subsets of a task."
CURVE_NOTES = (
    "The error (1 minus an AUC) is taken to fall as scans to the power of minus the exponent; an exponent of "
    ".3 takes a fifth off with every doubling. 95 % intervals over subjects and seeds.",
    "Twice the scans: by how much the error is expected to fall if there were twice the most labelled scans.",
    "No answer is given for fewer than three subsets, where the exponent may be 0, and where the subsets "
    "lie further from a power law than chance allows (p below .05).",
)
MATCH_NOTES = (
    "Needed: with how many labelled scans the reference from the same weights is as good as the method is "
    "with its own; more: what it needs beyond these. From the reference's power law, up to "
    f"{REACH:g} times its most scans and down to as small a part of its fewest; 95 % interval over subjects "
    "and seeds.",
)
Record = dict[str, Any]


def learning_curves(config: Config, scores: Sequence[Score], costs: Costs) -> dict[tuple[str, Line], Curve]:
    """Return the fitted curves of all methods that have several complete subsets, in-domain."""
    found: dict[tuple[str, Line], list[Score]] = {}
    for score in scores:
        one = score.contender
        is_first = score.metric == primary_metric(config.tasks[one.task]).name
        if one.is_method and is_first and not score.zero_shot and score.comparable:
            found.setdefault((one.task, one.line), []).append(score)
    curves = {}
    for (task, line), some in found.items():
        scans = subset_sizes(costs, task, "train_scans")
        known = sorted(
            (score for score in some if score.contender.subset in scans),
            key=lambda score: scans[score.contender.subset],
        )
        if len(known) > 1:
            curves[task, line] = fit(known, [scans[score.contender.subset] for score in known])
    return curves


def curve_records(curves: Mapping[tuple[str, Line], Curve]) -> list[Record]:
    """Return a row for each curve, with the columns `CURVE_COLUMNS`."""
    records = []
    for curve in curves.values():
        record = _about(curve.scores[0]) | {
            "subsets": len(curve.scores),
            "scans": int(curve.scans[-1]),
            "exponent": float(curve.coefficients[1]),
            "p_misfit": curve.p_misfit,
            "reason": curve.reason or None,
        }
        record["exponent_low"], record["exponent_high"] = percentile_interval(curve.drawn[1])
        if not curve.reason:
            record["gain"], record["gain_low"], record["gain_high"] = doubled(curve)
        records.append(record)
    return records


def match_records(curves: Mapping[tuple[str, Line], Curve]) -> list[Record]:
    """Return a row for each subset of each method beside its reference, with the columns `MATCH_COLUMNS`."""
    records = []
    for (task, line), curve in curves.items():
        if curve.scores[0].contender.is_reference or (found := _reference(curves, task, line)) is None:
            continue
        for place, score in enumerate(curve.scores):
            needed, low, high, reason = scans_to_match(curves[task, found], curve, place)
            records.append(
                _about(score)
                | {
                    "scans": int(curve.scans[place]),
                    "mean": score.mean,
                    "reference": "/".join(found),
                    "needed": needed,
                    "needed_low": low,
                    "needed_high": high,
                    "more": needed - curve.scans[place],
                    "reason": reason or None,
                }
            )
    return records


def _reference(curves: Mapping[tuple[str, Line], Curve], task: str, line: Line) -> Line | None:
    """Return the reference from the same weights; what takes no weights meets the first of its backbone."""
    starts = {line[1]} if line[1] != NO_PRETRAINING else {other[1] for _, other in curves}
    for (its_task, other), curve in curves.items():
        same = its_task == task and other[0] == line[0] and other[1] in starts
        if same and curve.scores[0].contender.is_reference:
            return other
    return None


def _about(score: Score) -> Record:
    return {**about(score.contender, score.cohort, score.zero_shot), "metric": score.metric}


def curve_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method."""
    columns = (
        *places(config),
        plain("Subsets", "subsets"),
        Column("Most scans", lambda row: f"{row['scans']:,}"),
        numbers("Exponent", "exponent", ".2f"),
        intervals("exponent", ".2f"),
        Column("Twice the scans", _gain),
    )
    caption = "The error as a power law of the labelled scans." if records else EMPTY
    return lay_out("learning_curves", caption, columns, records, CURVE_NOTES, parts=2)


def _gain(row: Mapping[str, Any]) -> str:
    return row["reason"] or f"-{row['gain']:.3f} ({interval(row, 'gain_low', 'gain_high', '.3f')})"


def match_sheet(config: Config, records: Sequence[Record]) -> Sheet:
    """Lay out a line for each method and subset."""
    columns = (
        *places(config),
        Column("Scans", lambda row: f"{row['subset'].label}, {row['scans']:,}"),
        numbers("Score", "mean", ".3f"),
        Column("Reference needs", lambda row: row["reason"] or f"{row['needed']:,.0f}"),
        Column("95 % interval", _needed),
        Column("More", lambda row: "-" if row["reason"] else f"{row['more']:+,.0f}"),
    )
    caption = "How many labelled scans the reference needs to match a method." if records else EMPTY
    return lay_out("scans_to_match", caption, columns, records, MATCH_NOTES, parts=3)


def _needed(row: Mapping[str, Any]) -> str:
    if row["reason"]:
        return "-"
    high = "more than can be said" if math.isinf(row["needed_high"]) else f"{row['needed_high']:,.0f}"
    return f"{row['needed_low']:,.0f} to {high}"
