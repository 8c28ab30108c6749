"""Images drawn from texts, a column per method in the order of its mean rank (Dutt 2023, Figure 2)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import rankdata

from neuropeft import layout
from neuropeft.cohorts.splits import TEST
from neuropeft.config import Config
from neuropeft.contenders import Contender
from neuropeft.evaluate.scores import Score, at_home
from neuropeft.files import read_tsv
from neuropeft.grid import names_of
from neuropeft.publish.labels import cohort_label
from neuropeft.publish.style import DOUBLE_COLUMN, FONT_SIZE, new_figure, words_only
from neuropeft.split_names import split_name
from neuropeft.store import Store, open_store
from neuropeft.subsets import Subset
from neuropeft.tasks.generation import Generation

TEXTS = 3  # of each subset
LONGEST = 90  # letters of a text
COLUMN = 0.9  # inches
WORDS = 1.5  # inches, of the column of texts


def draw_generations(config: Config, results: Path, scores: Sequence[Score], name: str) -> Figure:
    """Draw the images of some test texts: the real one, then those of all methods and of what is untuned.

    Methods stand in the order of their mean rank over subsets. Shown are the smallest and the largest subset,
    the first seed and fold, and texts that lie evenly among those of the test side.

    Raises:
        UserError: a file of the store or of predictions cannot be read.
    """
    drawn = [score for score in at_home(config, scores, name) if score.contender.sort == "cells"]
    of_task = [score for score in drawn if score.values]
    methods = [score for score in of_task if score.contender.is_method]
    if not methods:
        return words_only(f"No images to show: nothing has been drawn for {name}.")
    every = sorted({score.contender.subset for score in methods})
    subsets = list(dict.fromkeys([every[0], every[-1]]))
    ranks = _mean_ranks(methods)
    untuned = {score.contender.line: score.contender for score in of_task if score.contender.is_control}
    cohort = config.tasks[name].train
    store = open_store(layout.STORE.at(results, cohort=cohort))
    columns = 1 + len(ranks) + len(untuned)
    figure = new_figure(max(DOUBLE_COLUMN, WORDS + COLUMN * columns), COLUMN * TEXTS * len(subsets) + 1.0)
    axes = figure.subplots(TEXTS * len(subsets), columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    of_line = {(score.contender.line, score.contender.subset): score.contender for score in methods}
    for place, subset in enumerate(subsets):
        shown = [of_line.get((line, subset)) for line in ranks] + list(untuned.values())
        part = axes[place * TEXTS : (place + 1) * TEXTS]
        _show(part, results, cohort, store, shown, subset)
    axes[0, 0].set_title("real", fontsize=FONT_SIZE)
    for axis, line in zip(axes[0, 1:], ranks, strict=False):
        short = next(one.contender.short for one in methods if one.contender.line == line)
        axis.set_title(f"{textwrap.fill(short, 12)}\n{ranks[line]:.1f}", fontsize=FONT_SIZE)
    for axis, one in zip(axes[0, 1 + len(ranks) :], untuned.values(), strict=True):
        axis.set_title(textwrap.fill(one.short, 12), fontsize=FONT_SIZE)
    figure.suptitle(f"{name} on {cohort_label(config, cohort)}: methods by mean rank", fontsize=FONT_SIZE)
    return figure


def _mean_ranks(methods: Sequence[Score]) -> dict[tuple[str, str, str], float]:
    """Return the mean rank of each line over the subsets that it has, the best first."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for subset in {score.contender.subset for score in methods}:
        own = [score for score in methods if score.contender.subset == subset]
        for score, rank in zip(own, rankdata([score.order for score in own]), strict=True):
            found.setdefault(score.contender.line, []).append(float(rank))
    return dict(
        sorted(((line, float(np.mean(ranks))) for line, ranks in found.items()), key=lambda one: one[1])
    )


def _show(
    axes: np.ndarray,
    results: Path,
    cohort: str,
    store: Store,
    shown: Sequence[Contender | None],
    subset: Subset,
) -> None:
    """Draw the lines of a subset; where a contender has no image, the place stays empty."""
    first = next(one for one in shown if one is not None)
    rows = read_tsv(layout.PREDICTIONS.at(results, **names_of(first.group), cohort=cohort))
    run = min((int(row["seed"]), int(row["fold"])) for row in rows)
    tested = [
        row
        for row in rows
        if row["split"] == TEST
        and row["subset"] == str(first.subset)
        and (int(row["seed"]), int(row["fold"])) == run
    ]
    chosen = np.linspace(0, len(tested) - 1, min(TEXTS, len(tested))).round().astype(int)
    for line, place in zip(axes, chosen, strict=False):
        row = tested[place]
        text = textwrap.shorten(Generation.words(row["y"]), LONGEST, placeholder=" ...")
        line[0].text(
            *(-0.1, 0.5),
            f"{textwrap.fill(text, 28)}\n({subset.label})",
            ha="right",
            va="center",
            fontsize=FONT_SIZE - 1,
            transform=line[0].transAxes,
        )
        _image(line[0], np.moveaxis(store.volumes[store.index_of(row["scan_id"])].astype(np.float32), 0, -1))
        for axis, one in zip(line[1:], shown, strict=True):
            if one is None:
                continue
            table = layout.PREDICTIONS.at(results, **names_of(one.group), cohort=cohort)
            folder = layout.predicted_files(table, str(one.subset), split_name(*run))
            path = folder / layout.IMAGE.format(scan=row["scan_id"])
            if path.is_file():
                _image(axis, np.asarray(Image.open(path)))


def _image(axis: Axes, pixels: np.ndarray) -> None:
    axis.imshow(pixels, cmap="gray", interpolation="nearest")
