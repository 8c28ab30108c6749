"""What predictions say of subjects: calibration, groups, matched ages, brain age; against planted answers."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from fabricated_results import contender, small_config
from neuropeft.cohorts.splits import SPLIT_COLUMNS
from neuropeft.evaluate import brain_age
from neuropeft.evaluate.calibration import (
    calibration,
    calibration_error,
    classwise_error,
    errors_by_chance,
    judged,
    probabilities,
    scaled,
    temperature,
    wilson,
)
from neuropeft.evaluate.people import Person, Predicted, people
from neuropeft.evaluate.score import Source
from neuropeft.evaluate.subgroups import band, group_records, match, matched_record
from neuropeft.files import write_tsv
from neuropeft.subsets import WHOLE
from neuropeft.tasks import task_kind
from neuropeft.tasks.base import Run

CONFIG = small_config()
BINARY, REGRESSION = task_kind("binary", 2), task_kind("regression", 0)
MULTICLASS = task_kind("multiclass", 3)


def run(y, score) -> Run:
    names = tuple(f"s{number:05d}" for number in range(len(y)))
    return Run(names, np.asarray(y, float), np.asarray(score, float), np.array([]))


def predicted(kind, validation: Run, *tests: Run, cohort: str = "SimA") -> Predicted:
    """Predictions of one seed for each test run."""
    task = "age" if kind is REGRESSION else "ad"
    source = Source(kind, ["SimA", "SimB"], [0], lambda *_: None, {})
    runs = {seed: {0: (validation, test)} for seed, test in enumerate(tests)}
    return Predicted(contender(CONFIG, task, "vit_b", "mae", "lora", WHOLE), cohort, kind, runs, source)


def too_sure(rng, n: int, times: float) -> Run:
    """Labels that follow log-odds, and predictions that have so many times as large ones."""
    odds = rng.normal(0, 1.5, n)
    return run(rng.random(n) < expit(odds), expit(times * odds))


def test_the_calibration_error_is_the_gap_of_bins_weighted_by_their_subjects():
    y, probability = np.array([1, 0, 1, 1]), np.array([0.25, 0.25, 0.8, 0.9])
    assert calibration_error(y, probability) == pytest.approx((2 * 0.25 + 0.2 + 0.1) / 4)
    assert calibration_error(np.stack([y, 1 - y]), probability)[0] == calibration_error(y, probability)


def test_of_more_classes_the_confidence_is_judged_and_classwise_each_against_the_others():
    """By hand: Guo 2017 (confidence of the likeliest class), Kull 2019 (mean over classes)."""
    y, score = np.array([0, 1, 2, 0]), np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0, 0.1, 0.9], [0, 1, 0]])
    right, confidence = judged(y, score)
    assert right.tolist() == [1, 0, 1, 0]
    assert calibration_error(right, confidence) == pytest.approx((0.4 + abs(1 - 0.9 + 0 - 1)) / 4)
    first = 2 * 0.2 + 1  # bins of 0.7 with one of two, of 0 with one of two
    second = abs(1 - 0.4) + 0.1 + 1  # of 0.2, of 0.1 and of 1
    third = 2 * 0.1 + 0.1 + 0  # of 0.1, of 0.9 and of 0
    assert classwise_error(y, score) == pytest.approx((first + second + third) / 4 / 3)
    of_two, probability = np.array([1, 0, 1]), np.array([0.33, 0.72, 0.88])
    assert classwise_error(of_two, probability) == pytest.approx(calibration_error(of_two, probability))


def test_calibrated_predictions_are_below_the_errors_by_chance_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    for score in (rng.random(80), rng.dirichlet(np.ones(3), 80)):
        drawn = np.array([[rng.choice(len(p), p=p) for p in probabilities(score)] for _ in range(400)])
        by_chance = errors_by_chance(score)
        for found, limit in zip(
            (calibration_error(*judged(drawn, score)), classwise_error(drawn, score)), by_chance, strict=True
        ):
            assert 0.92 <= (found <= limit).mean() <= 0.98


def test_the_temperature_of_validation_makes_predictions_of_test_right():
    rng = np.random.default_rng(1)
    validation, test = too_sure(rng, 4000, 3.0), too_sure(rng, 4000, 3.0)
    assert temperature(validation) == pytest.approx(3.0, rel=0.15)
    assert temperature(run([1, 1], [0.2, 0.3])) == 1.0, "of one class"
    found = calibration(predicted(BINARY, validation, test))
    assert found["ece"] > 3 * found["ece_by_chance"]
    assert found["ece_scaled"] < 0.03
    assert found["log_loss_scaled"] < found["log_loss"]
    assert found["sensitivity_low"] < found["sensitivity"] < found["sensitivity_high"]
    assert found["temperature_at_limit"] == 0
    faultless = run([0, 0, 1, 1], [0.2, 0.3, 0.7, 0.8])
    assert calibration(predicted(BINARY, faultless, test))["temperature_at_limit"] == 1


def test_the_temperature_of_validation_makes_three_classes_right():
    rng = np.random.default_rng(4)

    def three_times_too_sure(n: int) -> Run:
        chance = rng.dirichlet(np.ones(3), n)
        y = (rng.random((n, 1)) > chance.cumsum(1)[:, :-1]).sum(1)
        return run(y, probabilities(chance, 1 / 3))

    validation, test = three_times_too_sure(3000), three_times_too_sure(3000)
    assert temperature(validation) == pytest.approx(3.0, rel=0.1)
    found = calibration(predicted(MULTICLASS, validation, test))
    for name in ("ece", "classwise"):
        assert found[name] > 3 * found[f"{name}_by_chance"]
        assert found[f"{name}_scaled"] < 0.03
    assert found["log_loss_scaled"] < found["log_loss"]
    assert "sensitivity" not in found
    calm = scaled(validation, run([0, 1], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]))
    assert calm.score.max() < 0.5, "by validation, whatever test is like"


def test_the_interval_of_a_share_has_a_width_at_0_and_1():
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-3)  # Newcombe 1998
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-3)


def test_a_gap_between_groups_is_found_and_a_small_group_flagged():
    rng = np.random.default_rng(2)
    ages = np.r_[rng.uniform(30, 39, 60), rng.uniform(62, 75, 15)]
    error = np.where(np.arange(75) % 2, 6.0, 2.0) * rng.choice([-1, 1], 75) + rng.normal(0, 0.5, 75)
    test = run(np.full(75, 50.0), 50 + error)
    who = {
        name: Person(age, "FM"[number % 2], "AAB"[number % 3] if number < 60 else "")
        for number, (name, age) in enumerate(zip(test.subjects, ages, strict=True))
    }
    rows = list(group_records(predicted(REGRESSION, test, test), who, []))
    assert [row["group"] for row in rows] == ["women", "men", "20 to 39", "60 to 79", "site A", "site B"]
    assert [row["gap"] for row in rows[:2]] == pytest.approx([-4, 4], abs=0.3)
    assert 3 < rows[1]["gap_ci_low"] < rows[1]["gap"] < rows[1]["gap_ci_high"] < 5
    assert [row["small"] for row in rows[:4]] == [False, False, True, True], "15 on one side"
    assert [row["n"] + row["others"] for row in rows] == [75] * 4 + [60] * 2, "some sites are unknown"
    others = group_records(predicted(REGRESSION, test, test), who, ["age"])
    assert {row["variable"] for row in others} == {"sex", "site"}
    assert [band(age) for age in (19.9, 20, 80)] == ["below 20", "20 to 39", "80 and above"]


def test_subjects_are_paired_by_age_and_the_rest_left_out():
    home, away = match(np.array([20, 30, 80, np.nan]), np.array([31, 21, 22, 50]))
    assert list(zip(home.tolist(), away.tolist(), strict=True)) == [(0, 1), (1, 0)]
    # Errors grow with age alone: all of the gap is that of the ages, and nothing is left on the pairs.
    ages = {"SimA": np.linspace(20, 60, 41), "SimB": np.linspace(40.5, 80.5, 41)}
    sides = {name: run(of, of + of / 10) for name, of in ages.items()}
    home, away = (predicted(REGRESSION, one, one, cohort=name) for name, one in sides.items())
    who = {
        f"{name}/{subject}": Person(age, "")
        for name, one in sides.items()
        for subject, age in zip(one.subjects, ages[name], strict=True)
    }
    found = matched_record(home, away, who)
    assert 20 <= found["pairs"] <= 23
    assert found["gap_all"] == pytest.approx(2.05)
    assert abs(found["gap"]) <= 0.25
    assert found["gap_ci_low"] <= found["gap"] <= found["gap_ci_high"]


def test_brain_age_is_corrected_by_validation_and_ages_beyond_training_are_flagged(tmp_path: Path):
    rng = np.random.default_rng(3)

    def drawn_to_the_mean(n: int) -> Run:
        age = rng.uniform(40, 80, n)
        return run(age, 30 + 0.5 * age + rng.normal(0, 1, n))

    validation, test = drawn_to_the_mean(60), drawn_to_the_mean(200)
    scans = [
        {"scan_id": str(age), "subject": str(age), "age": age, "sex": "F", "session": None, "y": age}
        for age in (45, 60, 75)
    ]
    write_tsv(tmp_path / "tasks/age/SimA.tsv", scans, ("scan_id", "subject", "session", "y", "sex", "age"))
    split = [row | {"side": "train", "order": place} for place, row in enumerate(scans)]
    split.append({"scan_id": "v", "subject": "v", "side": "val", "order": 0, "y": 90})
    split.append({"scan_id": "t", "subject": "t", "side": "test", "order": None, "y": 30})
    write_tsv(tmp_path / "splits/age/seed-0.tsv", split, SPLIT_COLUMNS)
    found = brain_age.brain_age_record(predicted(REGRESSION, validation, test), tmp_path, 10.0)
    assert found["slope"] == pytest.approx(-0.5, abs=0.03)
    assert found["slope_corrected"] == pytest.approx(0, abs=0.1)
    assert abs(found["mean_error_corrected"]) < 0.5
    assert found["mae_over_mean"] == pytest.approx(found["mae"] / 10)
    assert found["outside"] == ((test.y < 45) | (test.y > 75)).sum()
    assert found["mae_inside"] < found["mae"] < found["mae_outside"]
    nothing = run(validation.y, rng.normal(60, 5, 60))
    unknown = brain_age.brain_age_record(predicted(REGRESSION, nothing, test), tmp_path, 10.0)
    assert np.isnan(unknown["mae_corrected"]), "validation shows no line to correct for"
    bins = list(brain_age.bin_records(predicted(REGRESSION, validation, test)))
    assert [row["bin"] for row in bins] == ["40 to 49", "50 to 59", "60 to 69", "70 to 79"]
    assert bins[0]["ci_low"] > 0 > bins[-1]["ci_high"], "the young are judged too old, the old too young"
    write_tsv(tmp_path / "cohorts/SimA/sites.tsv", [{"scan_id": "45", "site": "A"}], ("scan_id", "site"))
    assert people(tmp_path, "age", "SimA")["45"] == Person(45.0, "F", "A")
    assert people(tmp_path, "age", "SimA")["60"] == Person(60.0, "F", "")
