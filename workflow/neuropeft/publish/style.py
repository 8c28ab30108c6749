"""How figures look: colours that colour-blind readers can tell apart, sizes for print, three file formats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from neuropeft.config import Config, ViT
from neuropeft.files import atomic_path
from neuropeft.grid import Group
from neuropeft.probe_grid import is_probe

SINGLE_COLUMN = 85 / 25.4  # inches
DOUBLE_COLUMN = 178 / 25.4
FONT_SIZE = 8  # points at print size
LEGEND_LINE = 0.19  # inches
LEGEND_COLUMN = 2.0
GREY = "#6e6e6e"
BLACK = "#000000"
# Okabe & Ito 2008, without black, which is the CNNs', and the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))

RC: Any = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "figure.titlesize": FONT_SIZE + 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # text stays text: searchable, and small files
    "svg.hashsalt": "neuropeft",  # equal input gives equal files
}


@dataclass(frozen=True)
class Look:
    """How one curve or bubble is drawn."""

    colour: str
    marker: str
    dashes: Any


def look(index: int, variant: int = 0) -> Look:
    """Return the colour of the `index`-th method, and marker and line style of one of its variants."""
    style = (index + variant) % len(MARKERS)
    return Look(COLOURS[index % len(COLOURS)], MARKERS[style], DASHES[style])


def group_look(config: Config, group: Group) -> Look:
    """Return how a group is drawn, the same in all figures: a colour per method, black CNNs, grey probes."""
    starts = list(config.pretraining)
    if is_probe(group):
        start = look(1 + starts.index(group.pretraining) if group.pretraining in starts else 0)
        return Look(GREY, start.marker, start.dashes)
    index = list(config.methods).index(group.method)
    if not isinstance(config.backbones[group.backbone], ViT):
        cnns = [name for name, spec in config.backbones.items() if not isinstance(spec, ViT)]
        marker = look(cnns.index(group.backbone), len(MARKERS) - 1).marker
        return Look(BLACK, marker, look(index, len(MARKERS) - 1).dashes)
    return look(index, starts.index(group.pretraining) if group.pretraining in starts else 0)


@contextmanager
def print_style() -> Iterator[None]:
    """Draw within this context to get the project's fonts and lines."""
    with mpl.rc_context(RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches, laid out so that nothing is cut off."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, in one column or two, each `height` inches high."""
    across = min(columns, count)
    down = -(-count // across)
    figure = new_figure(SINGLE_COLUMN if across == 1 else DOUBLE_COLUMN, height * down)
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def shared_legend(figure: Figure, axes: Sequence[Axes], title: str = "") -> None:
    """Put one legend below all panels, in height that the figure gains."""
    entries: dict[str, Any] = {}
    for panel in axes:
        entries |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if not entries:
        return
    columns = min(len(entries), int(figure.get_figwidth() // LEGEND_COLUMN))
    lines = -(-len(entries) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + lines * LEGEND_LINE)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        title=title or None,
        title_fontsize=FONT_SIZE,
    )


def words_only(text: str) -> Figure:
    """Return a figure that says in words why there is nothing to draw."""
    figure = new_figure(SINGLE_COLUMN, 1.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True, color=GREY)
    return figure


def save(figure: Figure, out: Path, name: str) -> None:
    """Write `{name}.png` (300 dpi), `.svg` and `.pdf`; equal figures give equal files."""
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    for suffix, metadata in dates.items():
        with atomic_path(out / f"{name}{suffix}") as partial:
            figure.savefig(partial, dpi=300, metadata=metadata)
