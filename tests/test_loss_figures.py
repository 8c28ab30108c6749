"""Loss curves and reconstructions, drawn from fabricated results."""

import numpy as np
import pytest

from drawn import panel, read_csv, words
from fabricated_results import small_config
from neuropeft.cells.costs import cell_folder
from neuropeft.errors import UserError
from neuropeft.grid import Cell
from neuropeft.publish.losses import (
    draw_finetuning_losses,
    draw_pretraining_losses,
    finetuning_histories,
    pretraining_histories,
)
from neuropeft.publish.reconstructions import draw_reconstructions
from neuropeft.subsets import fraction


def test_loss_panels_count_cells_and_draw_every_seed(results):
    config = small_config()
    figure = draw_finetuning_losses(config, finetuning_histories(config, results))
    axis = panel(figure, "ad on ADNI, ViT-B: validation\n100 % of the training subjects, 14/15 cells")
    assert len(axis.get_lines()) == 14 + 5  # a thin line per cell, a thick one per method
    thick = next(i for i, line in enumerate(axis.get_lines()) if line.get_label() == "Full fine-tune")
    *seeds, median = (list(line.get_ydata()) for line in axis.get_lines()[thick - 3 : thick + 1])
    folders = [
        cell_folder(results, Cell("ad", "vit_b", "mae", "full", fraction(100), seed)) for seed in (0, 1, 2)
    ]
    losses = [[float(row["val_loss"]) for row in read_csv(folder / "history.csv")] for folder in folders]
    assert seeds == losses
    assert median == list(np.median(losses, axis=0))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss (cross-entropy)")
    assert panel(figure, "age on SimA (simulated), ViT-B: training").get_ylabel() == "loss (L1, standardised)"


def test_pretraining_losses_are_those_of_training_and_validation(results):
    figure = draw_pretraining_losses(small_config(), pretraining_histories(small_config(), results))
    axis = panel(figure, "ViT-B, mae on SimA (simulated)")
    history = read_csv(results / "pretraining/mae/vit_b/history.csv")
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert lines == {
        "training": [float(row["train_loss"]) for row in history],
        "validation": [float(row["val_loss"]) for row in history],
        "predicting the template": [float(row["template_loss"]) for row in history],
    }
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "loss on hidden patches (MSE)")


def test_a_pretraining_that_is_no_better_than_the_template_says_so(results):
    histories = pretraining_histories(small_config(), results)
    for key, rows in histories.items():
        histories[key] = [{**row, "template_loss": "0.1"} for row in rows]
    titles = [axis.get_title(loc="left") for axis in draw_pretraining_losses(small_config(), histories).axes]
    assert any("no better than the template" in title for title in titles)


def test_what_features_know_is_drawn_beside_the_losses(results):
    figure = draw_pretraining_losses(small_config(), pretraining_histories(small_config(), results))
    axis = panel(figure, "its features: ViT-B, mae")
    history = read_csv(results / "pretraining/mae/vit_b/history.csv")
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    for name in ("age", "sex"):
        found = [float(row[f"probe_{name}"]) for row in history]
        assert lines[f"probe: {name}"] == found


def test_reconstructions_show_input_mask_and_rebuilt_patches(results, tmp_path):
    path = results / "pretraining/mae/vit_b/reconstructions.npz"
    figure = draw_reconstructions(small_config(), path, "mae", "vit_b")
    assert len(figure.axes) == 3 * 9
    with np.load(path) as arrays:
        middle, hidden, rebuilt = (
            np.rot90(arrays[name][0][32]) for name in ("input", "mask", "reconstruction")
        )
    shown = [axis.images[0].get_array() for axis in figure.axes[:3]]
    assert np.array_equal(shown[0], middle)
    assert np.array_equal(np.ma.getmaskarray(shown[1]), hidden)
    assert np.array_equal(shown[2], np.where(hidden, rebuilt, middle))
    with np.load(path) as arrays:
        for place, (scan, plane) in {3: (0, 1), 6: (0, 2), 9: (1, 0)}.items():
            expected = np.rot90(np.take(arrays["input"][scan], 32, axis=plane))
            assert np.array_equal(figure.axes[place].images[0].get_array(), expected)
            assert not np.array_equal(shown[0], expected)
    assert "SimA (simulated)" in figure.get_suptitle()
    np.savez(tmp_path / "damaged.npz", input=np.zeros((1, 4, 4, 4)))
    with pytest.raises(UserError, match=r"damaged\.npz"):
        draw_reconstructions(small_config(), tmp_path / "damaged.npz", "mae", "vit_b")
    assert "has not trained" in words(draw_reconstructions(small_config(), tmp_path / "no", "mae", "vit_b"))
