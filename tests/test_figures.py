"""Figures from fabricated results: they exist in three formats, name what they show and hide nothing."""

import dataclasses
import itertools
import json
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from matplotlib import colors, image
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from drawn import legend, panel, read_csv, words
from fabricated_results import small_config, small_results
from neuropeft.cells.costs import cell_folder, read_costs, trainable_parameters
from neuropeft.evaluate.scores import read_scores
from neuropeft.grid import Cell
from neuropeft.publish.curves import curve_backbones, draw_curves
from neuropeft.publish.figures import write_figures
from neuropeft.publish.placing import place_labels
from neuropeft.publish.style import COLOURS, print_style
from neuropeft.publish.tradeoff import draw_tradeoff
from neuropeft.subsets import fraction, shots

NAMES = (
    "figure1",
    "figure2",
    "figure3",
    "figure4",
    "losses_pretraining",
    "losses_finetuning",
    "reconstructions_mae_vit_b",
    "reconstructions_mae_vit_s",
)


@pytest.fixture(scope="module")
def scores(results):
    return read_scores(small_config(), results)


@pytest.fixture(scope="module")
def costs(results):
    return read_costs(small_config(), results)


def test_every_figure_is_written_in_three_formats_even_before_any_result(tmp_path):
    write_figures(small_config(), tmp_path / "nothing", tmp_path / "out")
    for name in NAMES:
        for suffix in ("png", "svg", "pdf"):
            assert (tmp_path / "out" / f"{name}.{suffix}").stat().st_size > 500
    assert "nothing to show" in (tmp_path / "out" / "figure1.svg").read_text()


def test_figures_of_results_are_written_with_their_data(results, tmp_path):
    write_figures(small_config(), results, tmp_path)
    svg = (tmp_path / "figure1.svg").read_text()
    for text in ("ad on ADNI", "age on SimA (simulated)", "trainable parameters", "LoRA"):
        assert text in svg
    # as wide as two columns of a page, and legible there
    assert image.imread(tmp_path / "figure1.png").shape[1] == pytest.approx(178 / 25.4 * 300, abs=1)
    sizes = [float(size) for size in re.findall(r'<text style="font-size: ([\d.]+)px', svg)]
    assert len(sizes) > 20
    assert set(sizes) <= {7, 8, 9}
    # loss curves have no marks: without colours, dashes tell six methods and a solid line apart
    dashes = re.findall(r"stroke-dasharray: ([\d.,]+)", (tmp_path / "losses_finetuning.svg").read_text())
    assert len(set(dashes)) == 6
    rows = read_csv(tmp_path / "losses_finetuning.csv")
    assert len(rows) == 20 * (3 * 3 * (5 + 5 + 1) + 3 * 2 * 4 - 4)
    cell = Cell("age", "vit_b", "mae", "lora", fraction(25), 2)
    key = dict(zip(Cell._fields, map(str, cell), strict=True))
    of_cell = [row for row in rows if key.items() <= row.items()]
    assert of_cell == [key | row for row in read_csv(cell_folder(results, cell) / "history.csv")]
    rows = read_csv(tmp_path / "losses_pretraining.csv")
    assert len(rows) == 2 * 40
    key = {"pretraining": "mae", "backbone": "vit_b", "fold": "0"}
    assert rows[:40] == [key | row for row in read_csv(results / "pretraining/mae/vit_b/history.csv")]


def test_figures_of_folds(tmp_path, shared):
    config = small_config(splits={"folds": 3})
    small_results(tmp_path, shared, config)
    write_figures(config, tmp_path, tmp_path / "figures")
    assert "n = 50 test subjects, 3 seeds, 3-fold" in (tmp_path / "figures/figure3.svg").read_text()
    assert "fold 1" in (tmp_path / "figures/losses_pretraining.svg").read_text()
    rows = read_csv(tmp_path / "figures/losses_finetuning.csv")
    assert {(row["seed"], row["fold"]) for row in rows} == {(seed, fold) for seed in "012" for fold in "123"}
    assert Counter(row["fold"] for row in read_csv(tmp_path / "figures/losses_pretraining.csv")) == {
        fold: 2 * 40 for fold in "123"
    }
    drawn = (tmp_path / "figures/reconstructions_mae_vit_b.svg").read_text()
    assert "rebuilt from the visible ones" in drawn


def test_tradeoff_bubbles_lie_at_parameters_and_scores_with_proportional_area(scores, costs):
    trainable = trainable_parameters(costs)
    figure = draw_tradeoff(small_config(), scores, trainable)
    axis = panel(figure, "ViT-B: ad on ADNI\nn = 20 test subjects, 3 seeds\n10 % of the training subjects")
    shown = {
        (score.contender.backbone, score.contender.method): score
        for score in scores
        if (score.contender.task, score.contender.subset, score.metric) == ("ad", fraction(10), "auc")
        and score.cohort == "ADNI"
        and score.contender.backbone in ("vit_b", "densenet121")
        and score.contender.group in trainable  # probes train no parameter of the backbone
    }
    bubbles = {}
    for collection in axis.collections:
        if isinstance(collection, PathCollection):
            x, y = collection.get_offsets()[0]
            bubbles[round(float(y), 6)] = (float(x), float(collection.get_sizes()[0]))
    assert len(bubbles) == len(shown) == 6
    lora, attention = (shown["vit_b", method] for method in ("lora", "attention"))
    (x, small), (_, large) = (bubbles[round(score.mean, 6)] for score in (lora, attention))
    assert x == trainable[lora.contender.group]
    assert large / small == pytest.approx(
        trainable[attention.contender.group] / trainable[lora.contender.group]
    )
    groups = [lines for lines in axis.collections if isinstance(lines, LineCollection)]
    bars = [bar for lines in groups for bar in lines.get_segments()]
    low, high = lora.mean - lora.sd, lora.mean + lora.sd
    assert any(bar == pytest.approx(np.array([[x, low], [x, high]])) for bar in bars)
    assert {"chance", "Full fine-tune", "DenseNet121 Scratch", "control: predict the mean"} <= {
        *legend(figure)
    }
    assert axis.get_xscale() == "log"
    assert axis.get_xlabel().startswith("trainable parameters")
    assert axis.get_ylabel() == "test AUC\nhigher is better"


def test_what_trains_no_parameter_is_drawn_left_of_the_others_and_named_so(scores, costs):
    trainable = trainable_parameters(costs)
    alone = {group: 0 if group[3] in ("lora", "layernorm") else count for group, count in trainable.items()}
    axis = panel(draw_tradeoff(small_config(), scores, alone), "ViT-B: ad on ADNI")
    bubbles = [one for one in axis.collections if isinstance(one, PathCollection)]
    places = {float(one.get_offsets()[0][0]): float(one.get_sizes()[0]) for one in bubbles}
    assert len(places) == len(bubbles), "side by side"
    assert [x for x, area in places.items() if area == 0] == sorted(places)[:2]
    assert "LoRA (none)" in {text.get_text() for text in axis.texts}


@pytest.mark.parametrize("decades", [0.3, 1, 4])
def test_tradeoff_axis_has_marks_that_are_apart(scores, costs, decades):
    groups = sorted(trainable_parameters(costs), key=str)
    spread = np.logspace(4.4, 4.4 + decades, len(groups)).round()
    figure = draw_tradeoff(small_config(), scores, dict(zip(groups, map(int, spread), strict=True)))
    axis = panel(figure, "ViT-B: ad on ADNI")
    low, high = axis.get_xlim()
    ticks = [*axis.xaxis.get_major_ticks(), *axis.xaxis.get_minor_ticks()]
    shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    assert len(shown) > 1
    assert all(re.fullmatch(r"\d+[kM]", label.get_text()) for label in shown)
    boxes = [label.get_window_extent() for label in shown]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_tradeoff_says_when_it_shows_another_fraction(scores, costs):
    figure = draw_tradeoff(small_config(), scores, trainable_parameters(costs))
    axis = panel(figure, "ViT-B: age on SimA (simulated)")
    assert "25 % of the training subjects (nearest to 10 %)" in axis.get_title(loc="left")
    constant, voxels = (
        next(
            score.mean
            for score in scores
            if (score.contender.backbone, score.contender.method, score.contender.subset)
            == ("control", method, fraction(25))
            and (score.cohort, score.metric) == ("SimA", "mae")
        )
        for method in ("mean", "ridge_voxels")
    )
    controls = {line.get_label(): line for line in axis.get_lines() if "control" in line.get_label()}
    assert {name: list(line.get_ydata()) for name, line in controls.items()} == {
        "control: predict the mean": [constant, constant],
        "control: linear model on voxels": [voxels, voxels],  # fitted on 25 %, too
    }
    assert axis.get_ylabel() == "test MAE (years)\nlower is better"


def test_tradeoff_says_which_method_lacks_seeds(scores, costs):
    config = small_config(figures={"tradeoff_fraction": 100})
    axis = panel(draw_tradeoff(config, scores, trainable_parameters(costs)), "ViT-B: ad on ADNI")
    assert [text.get_text() for text in axis.texts if "seeds" in text.get_text()] == ["LoRA (2/3 seeds)"]


def test_tradeoff_labels_neither_overlap_nor_leave_their_panel(scores, costs):
    with print_style():
        figure = draw_tradeoff(small_config(), scores, trainable_parameters(costs))
        figure.draw_without_rendering()
        for axis in figure.axes:
            boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
            assert len(boxes) in (0, 3, 5, 6)
            for index, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[index + 1 :])
                assert axis.get_window_extent().padded(2).contains(*box.min)
                assert axis.get_window_extent().padded(2).contains(*box.max)


def test_a_label_stands_nearest_to_the_mark_that_it_names():
    figure = Figure()
    axis = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
    marks = {"left": (4.1, 4.2), "upper": (5.3, 5.3), "lower": (5.2, 4.8)}
    place_labels(axis, [(axis.annotate(name, place), 10.0) for name, place in marks.items()])
    places = dict(zip(marks, axis.transData.transform(list(marks.values())), strict=True))
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*place) for box in boxes for place in places.values())
    for text in axis.texts:
        if text.get_text():
            box = text.get_window_extent()
            away = {
                name: np.hypot(*(place - np.clip(place, box.min, box.max))) for name, place in places.items()
            }
            assert min(away, key=away.__getitem__) == text.get_text()


def test_curves_hold_means_over_seeds_at_each_fraction(scores, costs):
    config = small_config()
    assert curve_backbones(config) == {"figure2": ["vit_s"], "figure3": ["vit_b"]}
    figure = draw_curves(config, scores, costs, "figure3", ["vit_b"])
    axis = panel(figure, "ad on ADNI\nn = 20 test subjects, 3 seeds, 53/54 cells")
    lines = {line.get_label(): line for line in axis.get_lines()}
    full = [
        score
        for percent in (10, 50, 100)
        for score in scores
        if (score.contender.task, score.contender.backbone, score.contender.method) == ("ad", "vit_b", "full")
        and (score.contender.subset, score.metric, score.cohort) == (fraction(percent), "auc", "ADNI")
    ]
    assert list(lines["ViT-B Full fine-tune"].get_ydata()) == pytest.approx([score.mean for score in full])
    edges = {round(float(y), 6) for band in axis.collections for y in band.get_paths()[0].vertices[:, 1]}
    assert {round(score.mean + sign * score.sd, 6) for score in full for sign in (-1, 1)} <= edges
    dots = [sorted(line.get_ydata()) for line in axis.get_lines() if line.get_marker() == "."]
    assert all(sorted(score.values.values()) in dots for score in full)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [
        "10 %\n258",
        "50 %\n1,290",
        "100 %\n2,580",
    ]
    ridge = [
        score.mean
        for percent in (10, 50, 100)
        for score in scores
        if (score.contender.task, score.contender.method, score.contender.subset)
        == ("ad", "ridge_voxels", fraction(percent))
        and (score.metric, score.cohort) == ("auc", "ADNI")
    ]
    assert list(lines["control: linear model on voxels"].get_ydata()) == pytest.approx(ridge)
    named = {"chance", "control: linear model on voxels", "DenseNet121 Scratch"}
    named |= {f"Frozen {name}: linear probe, all tokens" for name in ("ViT-B", "untrained ViT-B")}
    assert named <= lines.keys() & {*legend(figure)}
    hollow = [line for line in axis.get_lines() if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1  # LoRA at 100 %: one of three seeds is missing


def test_shots_and_fractions_share_an_axis_of_subjects(scores, costs):
    few = {fraction(10): shots(5), fraction(50): fraction(50), fraction(100): shots(50)}

    def renamed(one):
        return dataclasses.replace(one, group=(*one.group[:4], few.get(one.subset, one.subset)))

    mixed = [dataclasses.replace(score, contender=renamed(score.contender)) for score in scores]
    of_cells = {cell._replace(subset=few.get(cell.subset, cell.subset)): cost for cell, cost in costs.items()}
    axis = panel(draw_curves(small_config(), mixed, of_cells, "figure3", ["vit_b"]), "ad on ADNI")
    shown = [tick.get_text() for tick in axis.get_xticklabels()]
    assert shown == ["5 shots\n86", "50 %\n430", "50 shots\n860"]
    assert axis.get_xlabel() == "labelled training subjects"
    one = panel(draw_curves(small_config(), scores, costs, "figure3", ["vit_b"]), "ad on ADNI")
    pairs = zip(one.get_lines(), axis.get_lines(), strict=True)
    assert all(np.array_equal(a.get_ydata(), b.get_ydata(), equal_nan=True) for a, b in pairs)


def test_a_fraction_without_seeds_is_a_gap(scores, costs):
    figure = draw_curves(small_config(), scores, costs, "figure2", ["vit_s"])
    axis = panel(figure, "ad on ADNI")
    line = next(line for line in axis.get_lines() if line.get_label() == "ViT-S LayerNorm fine-tune")
    assert np.isnan(line.get_ydata()[0])
    assert np.isfinite(line.get_ydata()[1:]).all()
    assert "51/54 cells" in axis.get_title(loc="left")


def test_curves_tell_methods_apart_without_colour(scores, costs):
    figure = draw_curves(small_config(), scores, costs, "figure3", ["vit_b"])
    axis = panel(figure, "ad on ADNI")
    curves = [line for line in axis.get_lines() if str(line.get_label()).startswith(("ViT", "Dense"))]
    assert len({line.get_marker() for line in curves}) == len(curves) == 6
    assert len({colors.to_hex(line.get_color()) for line in curves}) == 6
    assert len(set(COLOURS)) == 6


def test_a_figure_without_content_says_so(scores, costs):
    grid = json.loads(small_config().model_dump_json())["grid"]
    one_vit = small_config(grid=grid[1:])
    assert curve_backbones(one_vit) == {"figure2": [], "figure3": ["vit_b"]}
    assert "no further backbone" in words(draw_curves(one_vit, scores, costs, "figure2", []))
    grid[0]["fractions"] = grid[1]["fractions"] = [100]
    full_only = small_config(grid=grid)
    kept = [score for score in scores if score.contender.subset == fraction(100)]
    assert "several subsets" in words(draw_curves(full_only, kept, costs, "figure3", ["vit_b"]))
