"""Ranks of methods over tasks, cohorts and subsets, and tests over them."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from neuropeft.config import Config
from neuropeft.config.read import read_yaml
from neuropeft.contenders import contenders
from neuropeft.evaluate.across import too_few
from neuropeft.evaluate.compare import holm
from neuropeft.evaluate.scores import Score, primary_metric
from neuropeft.publish.across_table import across_records, across_sheet
from neuropeft.publish.rank_figure import cliques, draw_ranks
from neuropeft.publish.rank_table import rank_columns, rank_records, rank_sheet
from neuropeft.publish.style import print_style

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
            found.append(Score(**{**vars(score), "n": 40, "draws": drawn.astype(np.float32)}))
    return found


def test_the_best_has_rank_one_whatever_the_direction_of_the_metric(config: Config) -> None:
    rows = rank_records(config, scores(config))
    assert [(row["pretraining"], row["method"], row["mean_rank"]) for row in rows] == [
        ("mae", method, place) for place, method in enumerate(METHODS, start=1)
    ]  # scratch, which takes no weights, beside those that do; shuffled labels are no method
    for row in rows:
        assert (row["ci_low"], row["ci_high"]) == (row["mean_rank"],) * 2
        assert row["blocks"] == 4
        assert {row["ad, SimB, 100 %"], row["age, SimA, 100 %"]} == {row["mean_rank"]}, "no two are tied"
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
        assert row["ad, SimB, 100 %"] == 1, "all are tied"


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


# -- tests over blocks --


def differing(config: Config, fractions: list[int], lora: float, scratch: float) -> list[Score]:
    """Scores of blocks in which full is at .5 on one scale, the others so much better or, below 0, worse."""
    block = config.grid[0].model_copy(update={"fractions": fractions})
    config = config.model_copy(update={"grid": [block]})
    rng = np.random.default_rng(0)
    found = []
    for one in contenders(config):
        task = config.tasks[one.task]
        metric = primary_metric(task)
        for cohort in (task.train, *task.zero_shot):
            value = 0.5 + {"lora": lora, "scratch": scratch}.get(one.method, 0.0) + rng.normal(0, 1e-4)
            if metric.in_unit:  # of which predicting the mean misses by 20
                value = 20 * (1 if one.method == "mean" else 1 - value)
            values = dict.fromkeys(one.seeds, value)
            zero_shot = cohort != task.train
            found.append(Score(one, cohort, zero_shot, metric.name, metric.higher_is_better, values))
    return found


def test_over_many_blocks_methods_are_better_worse_or_practically_equal(config: Config) -> None:
    some = differing(config, [25, 50, 100], lora=0.002, scratch=-0.1)
    rows = {row["method"]: row for row in across_records(config, some)}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        **{"full": "reference", "lora": "practically equal", "scratch": "worse"}
    }
    assert rows["scratch"]["difference"] == pytest.approx(-0.1, abs=1e-3), "of AUC and of years alike"
    assert rows["scratch"]["p_holm"] == pytest.approx(2 * 2 * 0.5**12), "all of 12 blocks, two tests"
    assert rows["scratch"]["p_worse"] > 0.99
    assert rows["lora"]["p_equal"] > 0.99
    # Demsar 2006: ranks 3, 1 (or 2) and 2 (or 1) in each of 12 blocks
    assert rows["lora"]["p_friedman"] < 0.001
    better = {row["method"]: row for row in across_records(config, differing(config, [25, 50, 100], 0.1, 0))}
    assert better["lora"]["verdict"] == "better"
    notes = across_sheet(config, list(rows.values())).notes
    assert "over 12 blocks, tested on SimA (simulated), SimB (simulated)" in notes[-1]
    assert "share subjects and are not independent" in notes[-1]


def test_of_few_blocks_nothing_is_concluded(config: Config) -> None:
    rows = across_records(config, differing(config, [100], lora=0.2, scratch=-0.2))
    assert [row["verdict"] for row in rows] == ["too few blocks", "reference", "too few blocks"]
    assert "too few to conclude anything" in across_sheet(config, rows).notes[-1]
    assert [too_few(blocks, 1) for blocks in (5, 6)] == [True, False]  # 2 * 0.5**6 is .03


def test_holm_against_the_published_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_diagram_joins_what_is_not_told_apart_and_names_every_method(config: Config) -> None:
    p = np.ones((4, 4))
    p[0, 2] = p[2, 0] = p[0, 3] = p[3, 0] = p[1, 3] = p[3, 1] = 0.01
    assert cliques([0, 1, 2, 3], p) == [(0, 1), (1, 2), (2, 3)]
    with print_style():
        figure = draw_ranks(config, differing(config, [25, 50, 100], lora=0.0, scratch=-0.1))
        figure.draw_without_rendering()
    (axis,) = figure.axes
    texts = [text for text in axis.texts if "(" in text.get_text()]
    assert len(texts) == 3
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1) for box in boxes)
    bars = [line for line in axis.lines if line.get_linewidth() == 2.5]
    assert len(bars) == 1, "scratch is told apart from the two others, they are not from each other"
    assert max(bars[0].get_xdata()) < 2.2
    assert "(simulated)" in axis.get_title(loc="left")
