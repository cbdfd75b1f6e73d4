"""The figure of rho at one bit rate: the ratio greedy / OA-EM over rho, and what each geometry is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oaem.config.geometry import Geometry
from oaem.config.schema import Config
from oaem.presentation.figures.drawing import canvas, in_words, logarithmic, styled
from oaem.presentation.spread import Spread, ratio_spread
from oaem.presentation.tables.build import Measurements, Table, fill
from oaem.presentation.view import search_label

if TYPE_CHECKING:
    import pandas as pd

# By distance from the calibration text: colour, marker and line tell the texts apart, any one of them alone.
TEXT_MARKS = (("#1f4e79", "s", "-"), ("#b07a1a", "^", "--"), ("#a03c28", "o", ":"))
LAYERS = ("rho_min", "rho", "rho_max", "true_bits")
APART = 1.17  # marks of different texts at one rho stand beside each other


class Point(NamedTuple):
    """One geometry on one text: where it stands, and the ratio there, one a seed and their spread."""

    geometry: Geometry
    text: str
    low: float
    rho: float
    high: float
    bits: float
    ratios: tuple[float, ...]
    over: Spread


Panels = dict[str, dict[str, list[Point]]]


@styled
def rho_sweep(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Greedy over OA-EM against rho at one nominal rate: a row for each sweep, a panel before and after PV."""
    sweeps = _panels(fill("rho_sweep", Measurements(metrics), config, paper_dir))
    columns = max((len(stages) for stages in sweeps.values()), default=1)
    if not any(points for stages in sweeps.values() for points in stages.values()):
        figure, (axes,) = canvas(7.0, 4.0)
        in_words(
            axes, "No geometry of a sweep has both the rho of its layers\nand the perplexity of greedy and OA-EM yet."
        )
        return figure
    figure, _ = canvas(4.4 * columns + 1.0, 5.0 * len(sweeps), 0, 0)
    grid = figure.add_gridspec(2 * len(sweeps), columns, height_ratios=[4, 1] * len(sweeps))
    for row, (subject, stages) in enumerate(sweeps.items()):
        beside = [point for points in stages.values() for point in points]
        drawn = [stage for stage, points in stages.items() if points]
        for column, (stage, points) in enumerate(stages.items()):
            axes = figure.add_subplot(grid[2 * row, column])
            axes.set_title(stage.replace("PV", "PV-tuning"), pad=20)
            if not points:
                in_words(axes, f"{subject}: no pair of greedy\nand OA-EM has a perplexity {stage} yet.")
                continue
            _ratios(axes, points, beside)
            _ranges(figure.add_subplot(grid[2 * row + 1, column]), beside, subject, named=stage == drawn[0])
    return figure


def _panels(table: Table) -> Panels:
    """The known points of the table by sweep and stage, in the table's order."""
    found: Panels = {}
    for labels, values in table.rows():
        if labels["geometry"] is None:
            continue  # the row that says that there is no sweep
        point = search_label((int(labels["beam"] or 0), int(labels["epochs"] or 0)))
        stages = found.setdefault(f"{labels['model']} at {labels['rate']}, {point}", {})
        points = stages.setdefault(str(labels["stage"]), [])
        known = [number for key in LAYERS if isinstance(number := values[key].ours, float)]
        ratios = values["ratio"].numbers
        if len(known) == len(LAYERS) and ratios:
            geometry = Geometry.parse(str(labels["geometry"]))
            low, rho, high, bits = known
            points.append(Point(geometry, str(labels["text"]), low, rho, high, bits, ratios, ratio_spread(ratios)))
    return found


def _ratios(axes: Axes, points: list[Point], beside: list[Point]) -> None:
    """Every seed a mark, their geometric mean on a line by text, its interval upright."""
    texts = list(dict.fromkeys(point.text for point in beside))
    for index, text in enumerate(texts):
        color, marker, line = TEXT_MARKS[index % len(TEXT_MARKS)]
        own = [point for point in points if point.text == text]
        places = [point.rho * APART ** (index - (len(texts) - 1) / 2) for point in own]
        axes.plot(places, [point.over.mean for point in own], color=color, linestyle=line, linewidth=1.2)
        for place, point in zip(places, own, strict=True):
            if point.over.low is not None and point.over.high is not None:
                axes.plot([place] * 2, [point.over.low, point.over.high], color=color, linewidth=4, alpha=0.25)
            axes.scatter([place] * len(point.ratios), point.ratios, s=18, marker=marker, color=color, zorder=3)
        axes.plot([], [], color=color, marker=marker, markersize=4, linestyle=line, label=text)
    axes.axhline(1, color="black", linewidth=0.9)
    _rho_axis(axes, beside)
    # An interval of few seeds may be wider than all marks together: it may leave the panel, the marks may not.
    numbers = [1.0, *(number for point in beside for number in point.ratios)]
    stretch = max((max(numbers) / min(numbers)) ** 0.35, 1.05)
    logarithmic(axes.yaxis, min(numbers) / stretch, max(numbers) * stretch)
    axes.set(ylabel="greedy / OA-EM perplexity")
    axes.set_xticklabels([])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=3, fontsize=8, borderpad=0, columnspacing=1.2)


def _ranges(axes: Axes, points: list[Point], subject: str, named: bool) -> None:
    """The rho of each geometry's layers, from the smallest to the largest, beside its true bits."""
    geometries = {point.geometry: point for point in points}
    for height, point in enumerate(geometries.values()):
        axes.plot([point.low, point.high], [height] * 2, color="#777777", linewidth=4, solid_capstyle="butt")
        axes.scatter(point.rho, height, s=14, marker="|", color="black", zorder=3)
    names = [f"{g.num_codebooks} × {g.nbits} bit over {g.group_size}: {p.bits:.2f} bits" for g, p in geometries.items()]
    axes.set_yticks(range(len(names)), names if named else [], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"rho of the layers, smallest to largest\n{subject}")
    _rho_axis(axes, points)


def _rho_axis(axes: Axes, points: list[Point]) -> None:
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    logarithmic(axes.xaxis, min(point.low for point in points) / 2.5, max(point.high for point in points) * 2.5)
