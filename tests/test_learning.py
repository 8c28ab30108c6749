"""Learning curves: planted power laws are found, with intervals that hold them, and others are refused."""

import math

import numpy as np
import pytest

from fabricated_results import contender, small_config
from neuropeft.evaluate import learning
from neuropeft.evaluate.bootstrap import percentile_interval, resamples
from neuropeft.evaluate.learning import doubled, fit, scans_to_match
from neuropeft.evaluate.scores import Score
from neuropeft.publish.learning_table import (
    curve_records,
    curve_sheet,
    learning_curves,
    match_records,
    match_sheet,
)
from neuropeft.subsets import fraction

CONFIG = small_config()
SCANS = (50, 100, 200, 400)
SUBJECTS = 200
WEIGHTS = np.concatenate(list(resamples(SUBJECTS, 250))) / SUBJECTS


HARD = np.random.default_rng(9).gamma(1.5, 1 / 1.5, SUBJECTS)


def curve(errors, rng, method="lora", seed_sd=0.0) -> learning.Curve:
    """A curve of three seeds whose subjects have these mean errors; subjects are hard or easy everywhere."""
    errors = np.asarray(errors, float)
    hard = HARD / HARD.mean()
    of_subjects = errors[:, None] * hard * rng.gamma(4, 1 / 4, (len(errors), SUBJECTS))
    seeds = of_subjects.mean(1)[:, None] + seed_sd * errors[:, None] * rng.standard_normal((len(errors), 3))
    drawn = of_subjects @ WEIGHTS.T + (seeds.mean(1) - of_subjects.mean(1))[:, None]
    start = "none" if method == "scratch" else "mae"
    one = contender(CONFIG, "age", "vit_b", start, method, fraction(25))
    scores = [
        Score(one, "SimA", False, "mae", False, dict(enumerate(values)), SUBJECTS, draws=draws)
        for values, draws in zip(seeds, drawn, strict=True)
    ]
    return fit(scores, SCANS[: len(errors)], seed=int(rng.integers(1000)))


def law(factor: float = 20.0, exponent: float = 0.25) -> np.ndarray:
    return factor * np.array(SCANS, float) ** -exponent


def test_a_planted_exponent_and_what_doubling_brings_are_found():
    found = curve(law(), np.random.default_rng(0))
    assert found.reason == ""
    low, high = percentile_interval(found.drawn[1])
    assert low < 0.25 < high < 0.35
    gain, gain_low, gain_high = doubled(found)
    assert gain_low < gain < gain_high
    assert gain_low < 20 * (400**-0.25 - 800**-0.25) < gain_high


@pytest.mark.slow
def test_the_interval_of_the_exponent_holds_it_in_95_of_100_studies():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        low, high = percentile_interval(curve(law(), rng, seed_sd=0.05).drawn[1])
        held += low <= 0.25 <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_how_many_scans_full_fine_tuning_needs_to_match_another():
    rng = np.random.default_rng(2)
    full, lora = curve(law(), rng, "full"), curve(0.8 * law(), rng)
    needed, low, high, reason = scans_to_match(full, lora, 1)
    truth = 100 * 0.8 ** (-1 / 0.25)  # 244
    assert reason == ""
    assert low < truth < high
    assert needed == pytest.approx(truth, rel=0.4)
    beyond = scans_to_match(full, curve(0.3 * law(), rng), 3)
    assert (math.isnan(beyond[0]), beyond[3]) == (True, learning.BEYOND)


def test_what_the_fit_does_not_support_is_refused():
    rng = np.random.default_rng(3)
    flat, two = curve([8.0] * 4, rng), curve(law()[:2], rng)
    assert (flat.reason, two.reason) == (learning.FLAT, learning.FEW_SUBSETS)
    bent = curve([10, 10, 10, 4], rng)
    assert bent.reason == learning.NO_LAW
    for refused in (flat, two, bent):
        assert scans_to_match(refused, curve(law(), rng), 0)[3] == refused.reason
    (row,) = curve_records({("age", ("vit_b", "mae", "lora")): flat})
    assert "gain" not in row
    assert curve_sheet(CONFIG, [row]).rows[0][-1] == learning.FLAT


def test_tables_hold_a_line_for_each_curve_and_subset():
    rng = np.random.default_rng(4)
    curves = {
        ("age", ("vit_b", "mae", "full")): curve(law(), rng, "full"),
        ("age", ("vit_b", "mae", "lora")): curve(0.8 * law(), rng),
        ("age", ("vit_b", "none", "scratch")): curve(2 * law(), rng, "scratch"),
    }
    rows = match_records({name: one for name, one in curves.items() if name[1][2] != "scratch"})
    assert [(row["method"], row["scans"], row["reference"]) for row in rows] == [
        ("lora", scans, "vit_b/mae/full") for scans in SCANS
    ]
    shown = match_sheet(CONFIG, rows).rows[1]
    assert shown[3] == "25 %, 100"
    assert shown[-1].startswith("+")
    assert [row["method"] for row in curve_records(curves)] == ["full", "lora", "scratch"]
    assert learning_curves(CONFIG, [], {}) == {}
