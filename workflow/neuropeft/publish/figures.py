"""The figures: performance against parameters, data and costs, ranks, loss curves, pictures."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from neuropeft import layout
from neuropeft.cells.costs import read_costs, trainable_parameters
from neuropeft.config import Config
from neuropeft.evaluate.scores import read_scores
from neuropeft.grid import Encoder, autoencoded, encoder_folds, generated, segmented
from neuropeft.publish.cost_figure import draw_costs
from neuropeft.publish.curves import curve_backbones, draw_curves
from neuropeft.publish.generations import draw_generations
from neuropeft.publish.losses import (
    FINETUNING_COLUMNS,
    PRETRAINING_COLUMNS,
    draw_finetuning_losses,
    draw_pretraining_losses,
    finetuning_histories,
    pretraining_histories,
)
from neuropeft.publish.rank_figure import draw_ranks
from neuropeft.publish.reconstructions import draw_reconstructions
from neuropeft.publish.segmentations import draw_segmentations
from neuropeft.publish.sheet import write_csv
from neuropeft.publish.style import print_style, save
from neuropeft.publish.tradeoff import draw_tradeoff


def write_figures(config: Config, results: Path, out: Path) -> None:
    """Write every figure as PNG, SVG and PDF, and the loss curves also as CSV.

    Raises:
        UserError: a file of results cannot be read.
    """
    with print_style():
        for name, figure in _figures(config, results):
            save(figure, out, name)
    write_losses(config, results, out)


def write_losses(config: Config, results: Path, out: Path) -> None:
    """Write `losses_pretraining.csv` and `losses_finetuning.csv`: every epoch of every run."""
    pretraining_rows = [
        {"pretraining": pretraining, "backbone": backbone, "fold": fold, **row}
        for (pretraining, backbone, fold), rows in pretraining_histories(config, results).items()
        for row in rows
    ]
    write_csv(out / "losses_pretraining.csv", pretraining_rows, PRETRAINING_COLUMNS)
    finetuning_rows = [
        {**cell._asdict(), **row}
        for cell, rows in finetuning_histories(config, results).items()
        for row in rows
    ]
    write_csv(out / "losses_finetuning.csv", finetuning_rows, FINETUNING_COLUMNS)


def _figures(config: Config, results: Path) -> Iterator[tuple[str, Figure]]:
    scores = read_scores(config, results)
    costs = read_costs(config, results)
    yield "figure1", draw_tradeoff(config, scores, trainable_parameters(costs))
    for name, backbones in curve_backbones(config).items():
        yield name, draw_curves(config, scores, costs, name, backbones)
    yield "figure4", draw_costs(config, scores, costs)
    yield "ranks", draw_ranks(config, scores)
    yield "losses_pretraining", draw_pretraining_losses(config, pretraining_histories(config, results))
    yield "losses_finetuning", draw_finetuning_losses(config, finetuning_histories(config, results))
    for task in segmented(config):
        yield f"segmentations_{task}", draw_segmentations(config, results, scores, task)
    for task in generated(config):
        yield f"generations_{task}", draw_generations(config, results, scores, task)
    for pretraining, backbone in autoencoded(config):
        first = encoder_folds(config, pretraining)[0]
        path = (
            layout.PRETRAINED.at(results, **Encoder(pretraining, backbone, first).names)
            / "reconstructions.npz"
        )
        figure = draw_reconstructions(config, path, pretraining, backbone)
        yield f"reconstructions_{pretraining}_{backbone}", figure
