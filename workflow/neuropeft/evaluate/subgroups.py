"""How methods do in groups of subjects, by sex, age and site, and on zero-shot subjects of matched ages."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.evaluate.people import Person, Predicted
from neuropeft.evaluate.tested import Tested
from neuropeft.tasks.base import Array, Metric

BANDS = (20, 40, 60, 80)  # years
SMALL = 20  # subjects: of fewer, a group says little
DRAWS = 1000
CALIPER = 2.5  # years that matched subjects may be apart
SEXES = {"F": "women", "M": "men"}

Mask = NDArray[np.bool_]
Record = dict[str, object]


def group_records(one: Predicted, who: Mapping[str, Person], skip: Sequence[str]) -> Iterator[Record]:
    """Yield a row per group: its score, and the gap to all others whose sex, age or site is known.

    `skip` names `sex` or `age` where that is what is predicted.
    """
    runs, metric = one.tested(), one.kind.metrics[0]
    subjects = [who.get(subject, Person()) for subject in runs[0].subjects]
    weights = np.concatenate(list(resamples(len(subjects), DRAWS)))
    for variable, group, inside, outside in _groups(subjects):
        if variable in skip:
            continue
        points = [_value(runs, metric, side.astype(float)) for side in (inside, outside)]
        drawn = [_value(runs, metric, weights * side) for side in (inside, outside)]
        low, high = percentile_interval(drawn[0])
        gap_low, gap_high = percentile_interval(drawn[0] - drawn[1])
        yield {
            "metric": metric.name,
            "variable": variable,
            "group": group,
            "n": int(inside.sum()),
            "others": int(outside.sum()),
            "value": float(points[0]),
            "ci_low": low,
            "ci_high": high,
            "gap": float(points[0] - points[1]),
            "gap_ci_low": gap_low,
            "gap_ci_high": gap_high,
            "small": bool(min(inside.sum(), outside.sum()) < SMALL),
        }


def matched_record(home: Predicted, away: Predicted, ages: Mapping[str, Person]) -> Record:
    """Return the scores on subjects of the training and a zero-shot cohort that are paired by age.

    Both are predictions of a method; `ages` are by `{cohort}/{subject}`.
    """
    metric = home.kind.metrics[0]
    sides = [(one, one.tested()) for one in (home, away)]
    found = [
        np.array([ages.get(f"{one.cohort}/{subject}", Person()).age for subject in runs[0].subjects])
        for one, runs in sides
    ]
    pairs = match(*found)
    whole = [float(_value(runs, metric, None)) for _, runs in sides]
    record: Record = {"metric": metric.name, "pairs": len(pairs[0]), "gap_all": whole[1] - whole[0]}
    if not len(pairs[0]):
        return record
    chosen = [[_take(run, rows) for run in runs] for (_, runs), rows in zip(sides, pairs, strict=True)]
    weights = np.concatenate(list(resamples(len(pairs[0]), DRAWS)))
    points = [float(_value(runs, metric, None)) for runs in chosen]
    low, high = percentile_interval(_value(chosen[1], metric, weights) - _value(chosen[0], metric, weights))
    return record | {
        "home": points[0],
        "away": points[1],
        "gap": points[1] - points[0],
        "gap_ci_low": low,
        "gap_ci_high": high,
        "small": len(pairs[0]) < SMALL,
    }


def match(home: Array, away: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return pairs of subjects whose ages [n] and [m] are at most `CALIPER` apart, as many as there are.

    Among these, the differences of age add up to the least.
    """
    apart = np.abs(home[:, None] - away)
    # Beyond the caliper, or of unknown age, a pair costs more than all others together.
    cost = np.where(apart <= CALIPER, apart, CALIPER * (min(apart.shape) + 1))
    rows, columns = linear_sum_assignment(cost)
    kept = apart[rows, columns] <= CALIPER
    return rows[kept], columns[kept]


def band(age: float, edges: Sequence[int] = BANDS) -> str:
    """Return the name of the band of an age in years."""
    place = int(np.searchsorted(edges, age, side="right"))
    if place == 0:
        return f"below {edges[0]}"
    return f"{edges[-1]} and above" if place == len(edges) else f"{edges[place - 1]} to {edges[place] - 1}"


def _groups(subjects: Sequence[Person]) -> Iterator[tuple[str, str, Mask, Mask]]:
    sex = np.array([SEXES.get(one.sex, "") for one in subjects])
    order = np.argsort([one.age for one in subjects])  # bands from the youngest to the oldest
    bands = np.array(["" if np.isnan(one.age) else band(one.age) for one in subjects])
    site = np.array([f"site {one.site}" if one.site else "" for one in subjects])
    names = {"sex": list(SEXES.values()), "age": bands[order].tolist(), "site": sorted(site)}
    for variable, values in (("sex", sex), ("age", bands), ("site", site)):
        present = [name for name in dict.fromkeys(names[variable]) if name and (values == name).any()]
        for name in present if len(present) > 1 else ():
            yield variable, name, values == name, (values != name) & (values != "")


def _value(runs: Sequence[Tested], metric: Metric, weights: Array | None) -> Array:
    """Return a metric's mean over runs, [...] of weights [..., n]; NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.mean([metric.value(run.y, run.score, run.rule, weights) for run in runs], axis=0)


def _take(run: Tested, rows: NDArray[np.intp]) -> Tested:
    subjects = tuple(run.subjects[row] for row in rows)
    return Tested(subjects, run.y[rows], run.score[rows], run.rule[rows])
