"""How figures look: colours that colour-blind readers can tell apart, sizes for print, three file formats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from neuropeft.config import Config
from neuropeft.contenders import Contender, main_backbones
from neuropeft.files import atomic_path
from neuropeft.grid import NO_PRETRAINING

SINGLE_COLUMN = 85 / 25.4  # inches
DOUBLE_COLUMN = 178 / 25.4
FONT_SIZE = 8  # points at print size
LEGEND_LINE = 0.19  # inches
LEGEND_COLUMN = 2.0
CROWDED = 12  # of more curves or marks, a panel needs more room and no label beside each
GREY = "#6e6e6e"
BLACK = "#000000"
# Of families of methods: Okabe & Ito 2008, without black, which is for backbones that stand beside others,
# and the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SHADES = (0.0, -0.45, 0.4)  # of a family's colour: towards white, or, below 0, towards black
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

    @property
    def line(self) -> dict[str, Any]:
        """What `plot` is told of a line."""
        return {"color": self.colour, "linestyle": self.dashes}


def look(index: int) -> Look:
    """Return the look of the `index`-th curve of a panel that shows no contenders."""
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])


class Looks:
    """How the contenders of a configuration are drawn, the same in all figures.

    A family of methods has a colour, its methods have shades, markers and dashes of it; starts have other
    markers and dashes, too. As long as a colour has at most 21 methods, and a method at most 7 starts, no two
    look alike. Backbones that stand beside others are black, with room for 7 methods; probes are grey.
    """

    def __init__(self, config: Config) -> None:
        """Deal out the looks."""
        families = list(dict.fromkeys(one.family for one in config.methods.values()))
        colour = {name: families.index(one.family) % len(COLOURS) for name, one in config.methods.items()}
        self._starts = [*config.pretraining, NO_PRETRAINING]
        self._start_alone = {name for name, one in config.methods.items() if one.start == "none"}
        self._methods = list(config.methods)
        main = main_backbones(config)
        self._beside = [name for name in config.backbones if name not in main]
        self._of_method: dict[str, tuple[str, int]] = {}
        for place, method in enumerate(sorted(config.methods, key=colour.__getitem__)):
            shade = sum(colour[one] == colour[method] for one in self._of_method)
            self._of_method[method] = _shaded(COLOURS[colour[method]], shade), place

    def of(self, contender: Contender) -> Look:
        """Return the look of a cell group or a probe."""
        alone = contender.method in self._start_alone
        start = 0 if alone else self._starts.index(contender.pretraining)
        if contender.sort == "probes":
            return _styled(GREY, 0, start)
        if contender.backbone in self._beside:
            beside = len(MARKERS) - 1 + self._beside.index(contender.backbone)
            return _styled(BLACK, beside + self._methods.index(contender.method), start)
        return _styled(*self._of_method[contender.method], start)


def _styled(colour: str, place: int, start: int) -> Look:
    # Both numbers follow from marker and dashes, so that no two pairs share both.
    return Look(colour, MARKERS[(place + 2 * start) % len(MARKERS)], DASHES[(place + start) % len(DASHES)])


def _shaded(colour: str, place: int) -> str:
    share = SHADES[place % len(SHADES)]
    end = 1.0 if share > 0 else 0.0
    red, green, blue = (part + abs(share) * (end - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


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


def panels(count: int, height: float, curves: int = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, in one column or two, each `height` inches high.

    Panels of more than CROWDED `curves` are as wide as the page and twice as high, one below the other.
    """
    crowded = curves > CROWDED
    across = 1 if crowded else min(2, count)
    down = -(-count // across)
    figure = new_figure(
        DOUBLE_COLUMN if crowded or across > 1 else SINGLE_COLUMN, height * down * (1 + crowded)
    )
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
    most = min(len(entries), int(figure.get_figwidth() // LEGEND_COLUMN))
    for columns in range(most, 0, -1):  # fewer where long names need more room
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns,
            title=title or None,
            title_fontsize=FONT_SIZE,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    lines = -(-len(entries) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + lines * LEGEND_LINE)


def words_only(text: str) -> Figure:
    """Return a figure that says in words why there is nothing to draw."""
    figure = new_figure(SINGLE_COLUMN, 1.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True, color=GREY)
    return figure


def without_frame(axis: Axes) -> None:
    """Leave out ticks and lines around a picture; labels and title stay."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def save(figure: Figure, out: Path, name: str) -> None:
    """Write `{name}.png` (300 dpi), `.svg` and `.pdf`; equal figures give equal files.

    They have the figure's size, and more where a legend or label reaches beyond it.
    """
    figure.draw_without_rendering()
    whole = Bbox.union([figure.bbox_inches, figure.get_tightbbox().padded(0.03)])
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    for suffix, metadata in dates.items():
        with atomic_path(out / f"{name}{suffix}") as partial:
            figure.savefig(partial, dpi=300, metadata=metadata, bbox_inches=whole)
