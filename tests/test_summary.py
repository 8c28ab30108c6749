"""The closing words of a run, from fabricated scores: main scores beside the controls, and where to look."""

import re

import pytest

from fabricated_results import small_config
from neuropeft.errors import UserError
from neuropeft.evaluate.scores import read_scores
from neuropeft.publish.summary import print_summary
from neuropeft.subsets import fraction


def test_summary_shows_scores_controls_and_places(results, capsys):
    print_summary(small_config(), results)
    printed = capsys.readouterr().out
    assert printed.startswith("Simulated data (SimA, SimB)")
    block = printed.split("ad on ADNI")[1].split("\n\n")[0]
    (best,) = (
        score
        for score in read_scores(small_config(), results)
        if score.contender.group == ("ad", "vit_b", "mae", "attention", fraction(100))
        and (score.cohort, score.metric) == ("ADNI", "auc")
    )
    assert f"{best.mean:.4f}" in block
    assert "2/3" in block
    assert block.index("ViT-B Scratch") < block.index("Control: predict the mean")
    assert "age on SimB (simulated), zero-shot: MAE (years)" in printed
    for place in ("report.html", "tables", "figures", "qc/ADNI/index.html"):
        assert f" {results / place}\n" in printed


@pytest.mark.parametrize(("task", "cohort", "higher_first"), [("ad", "ADNI", True), ("age", "SimA", False)])
def test_summary_shows_the_best_method_first(results, capsys, task, cohort, higher_first):
    print_summary(small_config(), results)
    block = capsys.readouterr().out.split(f"{task} on {cohort}")[1].split("\n\n")[0]
    means = [float(mean) for mean in re.findall(r"^  ViT-B [^\d]*(\d+\.\d+) ", block, flags=re.MULTILINE)]
    assert len(set(means)) > 2
    assert means == sorted(means, reverse=higher_first)


def test_summary_without_scores_tells_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run the workflow"):
        print_summary(small_config(), tmp_path)
