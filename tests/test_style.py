"""How figures look: colours for colour-blind readers, and forty methods that can be told apart."""

import json
from itertools import combinations

import numpy as np
import pytest
from matplotlib import colors

from fabricated_results import small_config
from neuropeft.config import Config
from neuropeft.contenders import contenders
from neuropeft.evaluate.scores import Score
from neuropeft.grid import cells
from neuropeft.publish.curves import draw_curves
from neuropeft.publish.style import COLOURS, CROWDED, Looks, print_style
from neuropeft.publish.tradeoff import draw_tradeoff

# What linear RGB becomes for readers who lack red-sensitive or green-sensitive cones (Machado et al. 2009).
SEEN_WITHOUT = {
    "red": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "green": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
}


@pytest.mark.parametrize("cones", SEEN_WITHOUT)
def test_colours_differ_for_colour_blind_readers(cones):
    linear = np.array([colors.to_rgb(colour) for colour in COLOURS]) ** 2.2
    seen = np.clip(linear @ np.transpose(SEEN_WITHOUT[cones]), 0, 1) ** (1 / 2.2)
    for one, other in combinations(range(len(COLOURS)), 2):
        # the nearest two of Matplotlib's own colours are half as far apart
        assert np.linalg.norm(seen[one] - seen[other]) > 0.18, (COLOURS[one], COLOURS[other])


@pytest.fixture(scope="module")
def forty() -> Config:
    """Return a configuration of forty methods of three families, from up to three starts."""
    raw = json.loads(small_config().model_dump_json())
    kinds = ("full", "attention", "lora", "layernorm", "bitfit", "scratch")
    raw["methods"] = {f"{kinds[i % 6]}_{i}": {"kind": kinds[i % 6], "lr": 1e-3} for i in range(40)}
    raw["pretraining"]["other"] = raw["pretraining"]["mae"]
    block = {"tasks": ["ad"], "backbones": ["vit_b", "densenet121"], "pretraining": ["mae", "other", "none"]}
    raw["grid"] = [block | {"methods": list(raw["methods"]), "fractions": [10, 100], "seeds": [0]}]
    return Config.model_validate(raw)


def test_forty_methods_look_different(forty):
    looks = Looks(forty)
    shown = {one.line: one for one in contenders(forty) if one.is_method}
    assert len({one.method for one in shown.values()}) == 40
    for backbone in ("vit_b", "densenet121"):
        drawn = [looks.of(one) for one in shown.values() if one.backbone == backbone]
        assert len(set(drawn)) == len(drawn) > 10
    of_family = {forty.methods[one.method].family: set() for one in shown.values()}
    for one in shown.values():
        if one.backbone == "vit_b":
            of_family[forty.methods[one.method].family].add(looks.of(one).colour)
    assert not any(one & other for one, other in combinations(of_family.values(), 2)), "a colour is a family"


@pytest.mark.slow
def test_figures_of_forty_methods_name_them_in_the_legend_alone(forty):
    scores = [
        Score(one, "ADNI", False, "auc", True, {0: place / 1000}, n=20)
        for place, one in enumerate(contenders(forty))
    ]
    trainable = {cell.group: 1000 + 10 * place for place, cell in enumerate(cells(forty))}
    with print_style():
        bubbles = draw_tradeoff(forty, scores, trainable)
        curves = draw_curves(forty, scores, dict.fromkeys(cells(forty)), "figure3", ["vit_b"])
        curves.draw_without_rendering()
    assert not bubbles.axes[0].texts, "labels would cover each other"
    for figure in (bubbles, curves):
        (legend,) = figure.legends
        assert len(legend.get_texts()) > 40 > CROWDED
        legend_box = legend.get_window_extent()
        assert not any(axis.get_tightbbox().overlaps(legend_box) for axis in figure.axes)
        assert figure.bbox.padded(1).containsx(legend_box.x0)
        assert figure.bbox.padded(1).containsx(legend_box.x1)
