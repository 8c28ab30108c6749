"""`make validate` finds what is planted, and tells a benchmark that lies from one that does not."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabricated_results import small_config
from neuropeft.contenders import contenders
from neuropeft.evaluate.scores import Score
from workflow_command import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import studies
import validate


def test_the_planted_truth_is_in_the_simulated_scans(tmp_path: Path) -> None:
    planted = studies.Planted(effect=1.0, ageing=0.7, site=2.0, agreement=0.85, subjects=2000)
    brightness, people = studies.draw(planted, 0)
    group, age = (np.array([one[key] for one in people], float) for key in ("group", "age"))
    at_b = np.array([one["site"] == "B" for one in people])
    shift = brightness[group == 1, 0].mean() - brightness[group == 0, 0].mean()
    assert shift == pytest.approx(1.0, abs=0.15)
    assert np.corrcoef(brightness[:, 1], age)[0, 1] == pytest.approx(0.7, abs=0.05)
    assert (at_b == group).mean() == pytest.approx(0.85, abs=0.03)
    assert brightness[at_b, 2].mean() - brightness[~at_b, 2].mean() == pytest.approx(2.0, abs=0.15)
    best = np.abs(studies.AGE + studies.AGE_SD * 0.7 * brightness[:, 1] - age).mean()
    assert best == pytest.approx(planted.mae, rel=0.05)


def test_people_who_are_filed_twice_are_refused_and_others_are_not() -> None:
    assert validate.is_refused(studies.Planted(subjects=24, filed_twice=True), 0)
    assert not validate.is_refused(studies.Planted(subjects=24), 0)


@pytest.fixture
def outcomes():
    """What an honest benchmark would find in three cohorts of each level."""
    template = next(iter(contenders(small_config())))
    rng = np.random.default_rng(0)

    def outcome(level: studies.Planted) -> validate.Outcome:
        scores = []
        for place, method in enumerate((*validate.LEARNERS, "mean", "shuffled")):
            skill = 0.9 - 0.1 * place if method in validate.LEARNERS else 0.0
            for task, metric, chance, best in (("ad", "auc", 0.5, level.auc), ("age", "mae", 6.4, level.mae)):
                group = (task, "vit", "none", method, template.subset)
                mean = chance + skill * (best - chance)
                draws = (mean + rng.normal(0, 0.02, 200)).astype(np.float32)
                one = replace(template, group=group, seeds=(0,))
                scores.append(
                    Score(
                        one,
                        "Simulated",
                        False,
                        metric,
                        task == "ad",
                        {0: mean},
                        ci_low=mean - 0.04,
                        ci_high=mean + 0.04,
                        draws=draws,
                    )
                )
        return validate.Outcome(scores, {})

    return {level: [outcome(level) for _ in range(3)] for level in validate.LEVELS}


def test_an_honest_benchmark_passes(outcomes) -> None:
    answers = [*validate.effects(outcomes), *validate.order(outcomes)]
    assert len(answers) == 2 * len(validate.LEARNERS) + 3
    assert all(one.holds for one in answers)


@pytest.mark.parametrize(
    ("method", "task", "lie"), [("lora", "ad", 0.95), ("shuffled", "ad", 0.7), ("scratch", "age", 1.0)]
)
def test_a_lie_is_found(outcomes, method: str, task: str, lie: float) -> None:
    """A score that does not depend on what was planted, or skill where there can be none."""
    for some in outcomes.values():
        for one in some:
            score = one.of(task, method)
            one.scores[one.scores.index(score)] = replace(
                score, values={0: lie}, ci_low=lie - 0.04, ci_high=lie + 0.04
            )
    assert [one.question for one in validate.effects(outcomes) if not one.holds]


def test_an_order_that_changes_between_cohorts_is_found(outcomes) -> None:
    for some in outcomes.values():
        first = some[0].of("ad", "lora")
        some[0].scores[some[0].scores.index(first)] = replace(first, values={0: 1.0}, draws=first.draws + 1)
    ad, age = validate.order(outcomes)
    assert not ad.holds
    assert age.holds


def test_intervals_of_honest_predictions_hold_the_truth() -> None:
    assert validate.held(validate.Law("binary", 1.0, 50), studies=12) > 0.6
    assert validate.held(validate.Law("regression", 5.0, 50), studies=12) > 0.6
