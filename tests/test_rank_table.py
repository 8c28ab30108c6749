"""Ranks of methods over tasks, cohorts and subsets."""

from pathlib import Path

import numpy as np
import pytest

from neuropeft.config import Config
from neuropeft.config.read import read_yaml
from neuropeft.contenders import contenders
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.publish.rank_table import rank_columns, rank_records, rank_sheet

TINY = Path(__file__).parent / "tiny.yaml"
METHODS = ("scratch", "lora", "full")  # from the best to the worst, below


@pytest.fixture
def config() -> Config:
    raw = read_yaml(TINY)
    raw["methods"]["full"] = {"kind": "full", "lr": 1e-3}
    raw["methods"]["shuffled"] = {"kind": "full", "lr": 1e-3, "shuffle_labels": True}
    raw["grid"] = [raw["grid"][0] | {"methods": [*METHODS, "shuffled"]}]
    return Config.model_validate(raw)


def scores(config: Config, spread: float = 0.0, worst: float = 0.5) -> list[Score]:
    """Scores of all contenders, of an AUC and of years: those of `METHODS` in their order."""
    found = []
    for one in contenders(config):
        task = config.tasks[one.task]
        metric = primary_metric(task)
        place = METHODS.index(one.method) if one.method in METHODS else 9
        value = 0.9 - 0.1 * place if metric.higher_is_better else 5 + place + worst
        drawn = value + spread * np.random.default_rng(place).standard_normal(200)
        for cohort in (task.train, *task.zero_shot):
            values = dict.fromkeys(one.seeds, value)
            score = Score(one, cohort, cohort != task.train, metric.name, metric.higher_is_better, values)
            found.append(Score(**{**vars(score), "draws": drawn.astype(np.float32)}))
    return found


def test_the_best_has_rank_one_whatever_the_direction_of_the_metric(config: Config) -> None:
    rows = rank_records(config, scores(config))
    assert [(row["pretraining"], row["method"], row["mean_rank"]) for row in rows] == [
        ("mae", method, place) for place, method in enumerate(METHODS, start=1)
    ]  # scratch, which takes no weights, beside those that do; shuffled labels are no method
    for row in rows:
        assert (row["ci_low"], row["ci_high"]) == (row["mean_rank"],) * 2
        assert row["blocks"] == 4
        assert {row["ad, SimB, 100 %"], row["age, SimA, 100 %"]} == {row["mean_rank"]}
    assert [row["behind_low"] for row in rows] == [0, 1, 2]
    sheet = rank_sheet(config, rows)
    assert [row[3] for row in sheet.rows] == ["1.0 =", "2.0", "3.0"]
    assert rank_columns(rows)[-4:] == list(sheet.header[-4:])


def test_intervals_are_of_ranks_in_draws_of_subjects(config: Config) -> None:
    rows = rank_records(config, scores(config, spread=10.0))
    for row in rows:
        assert 1 <= row["ci_low"] < row["mean_rank"] + 1
        assert row["ci_high"] > row["ci_low"]
        assert row["behind_low"] <= 0 <= row["behind_high"], "none is shown to be behind"


def test_a_block_counts_if_all_methods_have_all_their_seeds(config: Config) -> None:
    some = scores(config)
    broken = next(score for score in some if score.contender.method == "lora" and score.cohort == "SimB")
    lacking = Score(**{**vars(broken), "values": {0: 0.5}})
    rows = rank_records(config, [lacking if score is broken else score for score in some])
    assert {row["blocks"] for row in rows} == {3}
    assert "ad, SimB, 100 %" not in rank_columns(rows)


def test_two_methods_are_no_ranking(config: Config) -> None:
    some = [score for score in scores(config) if score.contender.method != "full"]
    assert rank_records(config, some) == []
    assert rank_sheet(config, []).rows == []
