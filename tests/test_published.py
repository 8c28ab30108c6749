"""The paper's figures stand only beside scores of the same cohort, role, metric and unit."""

import json

import pytest

from fabricated_results import contender, small_config
from neuropeft.config import Config
from neuropeft.evaluate.scores import Score
from neuropeft.publish.published import published_score
from neuropeft.subsets import fraction


@pytest.mark.parametrize(
    ("task", "metric", "cohort", "zero_shot", "published"),
    [
        ("ad", "auc", "ADNI", False, (0.8619, 0.0241)),
        ("ad", "auc", "OASIS", True, (0.8353, 0.0103)),
        ("ad", "auc", "OASIS", False, None),  # trained on here, zero-shot in the paper
        ("ad", "auc", "Ours", False, None),
        ("ad", "balanced_accuracy", "ADNI", False, None),
        ("age", "mae", "ADNI", False, (4.5076, 0.153)),
        ("months", "mae", "ADNI", False, None),
    ],
)
def test_published_figures_only_of_the_same_cohort_role_metric_and_unit(
    task, metric, cohort, zero_shot, published
):
    raw = json.loads(small_config().model_dump_json())
    raw["cohorts"]["Ours"] = {"bids": "ours"}
    if task == "months":
        task, raw["tasks"]["age"]["unit"] = "age", "months"
    config = Config.model_validate(raw)
    score = Score(
        contender(config, task, "vit_b", "mae", "full", fraction(100)),
        cohort,
        zero_shot,
        metric,
        metric != "mae",
        {},
    )
    assert published_score(config, score) == published
