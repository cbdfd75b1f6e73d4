"""Direct labels for points of a figure, set where they cover neither each other nor another point."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

Box = tuple[float, float, float, float]  # left, bottom, right, top in points


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point; `prefer` is the side tried first: above, below, right or left.

    An empty text only keeps the point free of other labels.
    """

    x: float
    y: float
    text: str
    color: str = "#222222"
    prefer: str = "above"
    size: float = 7.5


_SIDES = {"above": (0, 1), "below": (0, -1), "right": (1, 0), "left": (-1, 0)}
_DIAGONALS = list(product((1, -1), (1, -1)))
_DISTANCES = (7.0, 14.0, 22.0)
_MARK = 4.5  # half the size of a mark in points


def place(figure: Figure, panels: list[tuple[Axes, list[Label]]]) -> None:
    """Write the labels; the same input gives the same places.

    Sizes are estimated from the number of characters, which is near enough for short numbers and names.
    """
    figure.draw_without_rendering()
    for axes, labels in panels:
        _place(axes, labels, figure.dpi)


def _place(axes: Axes, labels: list[Label], dpi: float) -> None:
    scale = 72.0 / dpi
    points = [tuple(axes.transData.transform((label.x, label.y)) * scale) for label in labels]
    marks: list[Box] = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in points]
    frame = tuple(bound * scale for bound in axes.get_window_extent().extents)
    taken: list[Box] = []
    for index, (label, point) in enumerate(zip(labels, points, strict=True)):
        if not label.text:
            continue
        width, height = 0.56 * label.size * len(label.text), 1.15 * label.size
        others = taken + marks[:index] + marks[index + 1 :]
        candidates = [_candidate(point, side, distance, width, height) for distance, side in _order(label.prefer)]
        costs = [_cost(box, others, frame, rank) for rank, (box, _) in enumerate(candidates)]
        box, (dx, dy) = candidates[costs.index(min(costs))]
        taken.append(box)
        text = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=label.size,
            color=label.color,
            zorder=6,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )
        text.set_in_layout(False)


def _order(prefer: str) -> list[tuple[float, tuple[int, int]]]:
    sides = [_SIDES[prefer], *(side for name, side in _SIDES.items() if name != prefer), *_DIAGONALS]
    return [(distance, side) for distance in _DISTANCES for side in sides]


def _candidate(
    point: tuple[float, float], side: tuple[int, int], distance: float, width: float, height: float
) -> tuple[Box, tuple[float, float]]:
    dx, dy = side[0] * (distance + width / 2), side[1] * (distance + height / 2)
    x, y = point[0] + dx, point[1] + dy
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), (round(dx, 3), round(dy, 3))


def _cost(box: Box, others: list[Box], frame: tuple[float, ...], rank: int) -> float:
    """Area covered and area outside the panel, then the order of preference."""
    covered = sum(_overlap(box, other) for other in others)
    area = (box[2] - box[0]) * (box[3] - box[1])
    outside = area - _overlap(box, (frame[0], frame[1], frame[2], frame[3]))
    return 100 * (covered + outside) + rank


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)
