"""Places labels beside the marks that they name, so that they cover neither marks nor each other."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

GAP = 2.0  # points between a mark and its label
MARK_RADIUS = 4.0  # points
CORE = 0.8  # share of a bubble's half width that labels keep clear of: its corners are empty
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)  # label heights that a label may move away, nearest first
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
BESIDE = 4  # the first directions, nearest, need no line from the label to its mark
OUTSIDE_COST = 10.0  # leaving the panel is worse than covering something
DISTANCE_COST = 0.3  # a label nearby may touch something rather than stand far away
ASTRAY_COST = 0.5  # of its own area, for a label that is nearer to another mark than to its own

Point = NDArray  # [2], pixels


def place_labels(axis: Axes, labels: Sequence[tuple[Annotation, float]]) -> None:
    """Move each label to the place around its mark where it covers least, the nearest of equal ones.

    Args:
        axis: panel whose layout is settled; its error bars are kept clear, too.
        labels: annotations at their marks' positions, and the radius of each mark in points.
    """
    points = axis.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    centres = [axis.transData.transform(label.xy) for label, _ in labels]
    taken = [
        Bbox.from_bounds(x - half, y - half, 2 * half, 2 * half)
        for (x, y), (_, radius) in zip(centres, labels, strict=True)
        for half in (max(radius * CORE, MARK_RADIUS) * points,)
    ]
    for bars in axis.collections:
        if isinstance(bars, LineCollection):
            taken += [Bbox(axis.transData.transform(bar)).padded(GAP * points) for bar in bars.get_segments()]
    inside = axis.get_window_extent()
    for (label, radius), centre in zip(labels, centres, strict=True):
        away = (max(radius, MARK_RADIUS) + GAP) * points
        size = label.get_window_extent()
        places = list(_places(centre, size.width, size.height, away))
        near = len(DIRECTIONS)
        costs = [
            _cost(box, taken, inside)
            + DISTANCE_COST * size.height * size.height * (index // near)
            + ASTRAY_COST * size.width * size.height * _is_astray(box, centre, centres)
            for index, box in enumerate(places)
        ]
        best = min(range(len(places)), key=costs.__getitem__)
        taken.append(places[best])
        _move(axis, label, places[best], with_line=best >= BESIDE)


def _move(axis: Axes, label: Annotation, box: Bbox, with_line: bool) -> None:
    left, bottom = axis.transData.inverted().transform((box.x0, box.y0))
    label.set_position((left, bottom))
    label.set(horizontalalignment="left", verticalalignment="bottom", in_layout=False)
    if with_line:
        middle = axis.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "grey", "shrinkA": 6, "shrinkB": 3}
        axis.annotate("", label.xy, (middle[0], middle[1]), arrowprops=line).set_in_layout(False)


def _places(centre: Point, width: float, height: float, away: float) -> Iterator[Bbox]:
    x, y = centre
    for step in STEPS:
        reach = away + step * height
        for across, up in DIRECTIONS:
            left = x - width / 2 + across * (reach + width / 2)
            bottom = y - height / 2 + up * (reach + height / 2)
            yield Bbox.from_bounds(left, bottom, width, height)


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    covered = sum(_common_area(box, other) for other in taken)
    return covered + OUTSIDE_COST * (box.width * box.height - _common_area(box, inside))


def _is_astray(box: Bbox, own: Point, centres: Sequence[Point]) -> bool:
    return min(_distance(box, centre) for centre in centres) < _distance(box, own)


def _distance(box: Bbox, point: Point) -> float:
    across = max(box.x0 - point[0], 0.0, point[0] - box.x1)
    return math.hypot(across, max(box.y0 - point[1], 0.0, point[1] - box.y1))


def _common_area(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else common.width * common.height
