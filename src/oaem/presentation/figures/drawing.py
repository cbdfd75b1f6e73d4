"""How figures look and how they are written: readable in grey, and the same bytes from the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from oaem.errors import UserError
from oaem.runtime.atomic import atomic_path

# No dates and no versions: the same numbers give the same bytes.
METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
MAX_TICKS = 7
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "svg.hashsalt": "oaem",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Mark:
    """How one initialisation is drawn: marker, fill, line and side of the label tell it apart without colour."""

    label: str
    color: str
    marker: str
    face: str
    line: str
    side: str


MARKS = {
    "Greedy": Mark("Greedy", "#a03c28", "o", "white", "--", "above"),
    "OA-EM": Mark("OA-EM", "#1f4e79", "s", "#1f4e79", "-", "below"),
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under this module's style, whatever the process has set."""

    @wraps(draw)
    def wrapped(*args: Any, **options: Any) -> Figure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}):
            return draw(*args, **options)

    return wrapped


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as .svg or .png, atomically and without dates or versions in it; UserError for another suffix."""
    path = Path(path)
    if path.suffix not in METADATA:
        raise UserError(f"{path}: a figure is written as .svg or .png, not {path.suffix or 'without a suffix'}.")
    # The format is given in words because the temporary name that matplotlib sees ends in .tmp.
    with matplotlib.rc_context(dict(STYLE)), atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=METADATA[path.suffix])


def write_svg(figure: Figure, file: IO[bytes]) -> None:
    """Write a figure as SVG into an open file, for a page that holds it inline."""
    with matplotlib.rc_context(dict(STYLE)):
        figure.savefig(file, format="svg", metadata=METADATA[".svg"])


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure (inches) with panels row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def in_words(axes: Axes, text: str) -> None:
    """Say why a panel is empty instead of showing empty axes."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, color="#444444", transform=axes.transAxes)


def logarithmic(axis: Any, low: float, high: float) -> None:
    """Make an axis logarithmic over [low, high], with a few plain numbers as ticks."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in range(-6, 9) for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= MAX_TICKS:
            break
    plain_ticks(axis, ticks)


def plain_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Put ticks at these places and write them as plain numbers, also on a logarithmic axis."""
    axis.set_ticks(list(ticks))
    axis.set_ticks([], minor=True)
    axis.set_major_formatter("{x:,.10g}")
