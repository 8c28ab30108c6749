"""Tables of Lian 2024 and Med-Tuning by their configurations, beside the published figures."""

import csv
import math

import numpy as np
import pytest

from neuropeft.config.read import read_config
from neuropeft.contenders import contenders
from neuropeft.evaluate.compare import compare
from neuropeft.evaluate.scores import Score
from neuropeft.publish.label_table import label_scores, label_sheet
from neuropeft.publish.labels import metric_name
from neuropeft.publish.published import published_score
from neuropeft.publish.subset_table import subset_sheet
from neuropeft.tasks import kind_of
from workflow_command import ROOT

CONFIG = read_config(ROOT / "workflow/configs/lian2024.yaml", None)
PAPER = ROOT / "workflow/neuropeft/publish/reference/lian2024_tables.csv"


def scored(value, metrics, config=CONFIG):
    """Return scores of all cell groups: fabricated, the same for all but full fine-tuning."""
    return [
        Score(
            one,
            config.tasks[one.task].train,
            False,
            metric,
            True,
            {seed: value - 0.02 * one.is_reference for seed in one.seeds},
            ci_low=value - 0.1,
            ci_high=value + 0.1,
            subjects="the same",
            draws=np.linspace(-0.1, 0.1, 100) * one.subset.size / 10 + value - 0.02 * one.is_reference,
        )
        for one in contenders(config)
        if one.sort == "cells"
        for metric in metrics(config.tasks[one.task])
    ]


@pytest.fixture(scope="module")
def scores():
    return scored(0.7, lambda task: [metric.name for metric in kind_of(task).metrics[:1]])


def test_every_published_figure_stands_beside_a_cell_of_the_configuration(scores):
    found = [published_score(CONFIG, score) for score in scores]
    rows = PAPER.read_text().splitlines()[1:]
    assert sorted(mean for mean, sd in filter(None, found)) == sorted(
        float(row.split(",")[-1]) / 100 for row in rows
    )
    assert all(math.isnan(sd) for mean, sd in filter(None, found))


def lines_of(sheet, *names):
    """Return the lines of a method: {figure: {column: text}}."""
    columns = [name.replace("\n", " ") for name in sheet.header[4:]]
    return {row[3]: dict(zip(columns, row[4:], strict=True)) for row in sheet.rows if tuple(row[:3]) == names}


def test_methods_stand_over_full_fine_tuning_as_published(scores):
    sheet = subset_sheet(CONFIG, scores, compare(scores))
    lora = lines_of(sheet, "2D ViT-B", "mae", "lora_4")
    column = "nih, macro AUC 1 %"
    assert lora["mean (SD)"][column] == "0.7000 (0.0000)"
    assert lora["over full"][column] == "+0.020 (+0.020 to +0.020)"
    assert (lora["published"][column], lora["published, over full"][column]) == ("0.7710 (n/a)", "+0.029")
    assert lora["mean (SD)"]["nih, macro AUC 100 %"] == "-"
    full = lines_of(sheet, "2D ViT-B", "mae", "Full")
    assert full.keys() == {"mean (SD)", "published"}
    assert full["published"]["chexpert, macro AUC 10 %"] == "0.9030 (n/a)"
    assert any("Lian et al. 2024" in note for note in sheet.notes)
    assert not any("Dhinagar" in note for note in sheet.notes)


def test_a_difference_within_noise_is_marked(scores):
    noisy = [
        score if score.contender.is_reference else Score(**{**vars(score), "draws": score.draws[::-1]})
        for score in scores
    ]
    lora = lines_of(subset_sheet(CONFIG, noisy, compare(noisy)), "2D ViT-B", "mae", "lora_32")
    assert lora["over full"]["rsna, AUC 100 %"].startswith("+0.020 = (-")


def test_subsets_of_one_size_leave_the_table_empty_in_words(scores):
    whole = [score for score in scores if score.contender.subset.size == 100]
    assert subset_sheet(CONFIG, whole, []).caption == "Empty: no task has several subsets."


def test_each_label_has_its_lines_under_its_name():
    some = scored(0.8, lambda task: [metric.name for metric in kind_of(task).parts])
    shown = label_scores(CONFIG, some)
    assert {str(score.contender.subset) for score in shown} == {"fraction-100"}
    sheet = label_sheet(CONFIG, some)
    assert [row[0] for row in sheet.rows] == ["nih"] * 28 + ["chexpert"] * 10
    assert sheet.rows[26][2:4] == ["Hernia", "AUC"]
    assert sheet.rows[-1][:4] == ["chexpert", "CheXpert", "Effusion", "average precision"]
    assert sheet.rows[-1][4:].count("0.800 (0.700 to 0.900)") == 2, "lora_32 from mae and mrm"
    assert metric_name(CONFIG.tasks["chexpert"], "ap_4") == "ap_Effusion"
    assert metric_name(CONFIG.tasks["chexpert"], "brier") == "brier"


def of_regions(metrics):
    """Return the configurations of Med-Tuning, and scores of their cells."""
    for name in ("medtuning_brats", "medtuning_kits"):
        config = read_config(ROOT / f"workflow/configs/{name}.yaml", None)
        yield config, scored(0.7, lambda task: [one.name for one in metrics(kind_of(task))], config)


def test_every_published_figure_of_a_region_stands_beside_ours():
    found = []
    for config, some in of_regions(lambda kind: kind.parts):
        found += [pair[0] for score in some if (pair := published_score(config, score))]
        sheet = label_sheet(config, some)
        assert any("Shen et al. 2024" in note for note in sheet.notes)
        head = sheet.header.index("2D ViT of slices-B\nMed-Tuning")
        rows = {tuple(row[:4]): row[head] for row in sheet.rows}
    assert rows["kits", "KiTS19", "tumor", "Dice, published"] == "0.645"
    reference = list(csv.DictReader(PAPER.with_name("medtuning_tables.csv").read_text().splitlines()))
    printed = [float(row["dice_percent"]) / 100 for row in reference]
    printed += [float(row["hausdorff_mm"]) for row in reference if row["hausdorff_mm"]]
    assert sorted(found) == sorted(printed)


def test_the_published_mean_over_regions_is_the_papers_composite():
    *_, (config, some) = of_regions(lambda kind: kind.metrics)
    found = {
        (score.contender.method, score.metric): pair[0]
        for score in some
        if (pair := published_score(config, score))
    }
    assert found["st_adapter", "dice"] == pytest.approx(0.7581)
    assert {metric for _, metric in found} == {"dice"}, "no distances are printed"
    assert ("lora", "dice") not in found
