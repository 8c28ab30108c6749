"""Saliency: where networks look, beside the same with random weights."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import tiny_cells
from fabricated_results import small_config
from neuropeft import layout
from neuropeft.analyses.saliency import saliency, write_saliency
from neuropeft.grid import names_of
from neuropeft.publish import saliency_figure
from neuropeft.publish.saliency_figure import draw_saliency
from neuropeft.store import open_store
from neuropeft.train.data import Volumes
from neuropeft.train.memory import BatchSize
from neuropeft.train.predict import CellShown, Shown, cells_shown
from neuropeft.variants import salient


class Looks(nn.Module):
    """Two outputs: the larger one is of the left half, and three times as steep in its first slice."""

    def forward(self, x):
        left = x[..., :4, :, :].sum((1, 2, 3, 4)) + 2 * x[..., 0, :, :].sum((1, 2, 3))
        return torch.stack([left.square() + 1e6, x[..., 4:, :, :].sum((1, 2, 3, 4))], dim=1)


def test_saliency_is_of_the_predicted_class_and_one_on_average():
    volumes = Volumes(torch.rand(3, 1, 8, 8, 8).half(), torch.device("cpu"))
    shown = Shown(None, volumes, torch.tensor([2, 0]), ["sub-2", "sub-0"], BatchSize(1), Path())
    found = saliency(Looks(), CellShown("", "", None, {}, {}, None, [], shown))
    assert found.shape == (2, 8, 8, 8)
    assert torch.allclose(found.flatten(1).mean(dim=1), torch.ones(2), atol=1e-4)
    assert (found[:, 4:] == 0).all(), "the other class looks there"
    assert torch.allclose(found[:, 0], 3 * found[:, 1], rtol=1e-4)


def test_test_scans_of_a_cell_are_averaged_beside_random_weights(tmp_path):
    store = tiny_cells.make_store(tmp_path / "store", scans=40, sessions=2)
    split = tiny_cells.make_split(tmp_path / "seed-0.tsv", store, test=4)
    spec = tiny_cells.cell(training={"epochs": 1, "warmup_epochs": 0})
    tiny_cells.finetune(spec, store, split, None, tmp_path / "cell", tmp_path / "state")
    given = [tmp_path / "cell/delta.safetensors"], [], store, [split]
    for most, number in ((3, 3), (9, 4)):
        out = tmp_path / "map.npz"
        write_saliency(most, cells_shown(*given, out, device="cpu"), out)
        with np.load(tmp_path / "map.npz") as maps:
            assert int(maps["scans"]) == number, "first scans of test subjects alone"
            assert maps["learnt"].shape == maps["random"].shape == open_store(store).volumes.shape[2:]
            assert not np.allclose(maps["learnt"], maps["random"])


def test_the_figure_has_a_row_for_each_method_and_for_random_weights(tmp_path):
    config, rng = small_config(analyses={"saliency": 5}), np.random.default_rng(0)
    random = rng.random((32, 32, 32))
    for one in salient(config):
        path = layout.SALIENCY.at(tmp_path, **names_of(one.group[:4]), cohort=config.tasks[one.task].train)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, learnt=random if one.method == "full" else 1 - random, random=random, scans=5)
    figure = draw_saliency(config, tmp_path, "age")
    outside = np.mean(saliency_figure._template(32)[1] == 0)
    elsewhere = f"outside the brain: {outside:.0%}"
    rows = [axis.get_ylabel().replace("\n", " ") for axis in figure.axes if axis.get_ylabel()]
    assert rows == [
        f"ViT-B Full fine-tune like random weights: 1.00 {elsewhere}",
        f"ViT-B LoRA like random weights: -1.00 {elsewhere}",
        f"ViT-B Scratch like random weights: -1.00 {elsewhere}",
        f"ViT-B with random weights {elsewhere}",
    ]
    drawn = np.ma.concatenate([one.get_array().ravel() for axis in figure.axes for one in axis.images[1:]])
    assert 0.9 < drawn.min() < 1.1 < drawn.max() < 2, "1 is the mean of the brain"
