"""The figures, each a pure function of metrics.csv and of the folder `paper/`.

A figure shows the paper's own numbers in a second panel where the grid is the paper's. Where a grid lacks the data, the
panel says so in words. What to look for is in captions.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oaem.config.schema import Config
from oaem.presentation.claims.values import dominates, four_digits
from oaem.presentation.figures.drawing import MARKS, canvas, in_words, logarithmic, plain_ticks, save, styled
from oaem.presentation.figures.labels import Label, place
from oaem.presentation.figures.seeds import seeds
from oaem.presentation.figures.sweep import rho_sweep
from oaem.presentation.tables.build import Measurements, Table, fill
from oaem.presentation.view import View, search_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIGURES", "beam", "domains", "frontier", "gap", "rho_sweep", "save", "seeds", "severity_rho"]
BARS = {"ours": ("#1f4e79", ""), "paper": ("white", "////")}
PANELS = {"ours": "This grid", "paper": "The paper"}


class Run(NamedTuple):
    """A row of Table 2 or 16 as figures need it; any number may be missing."""

    init: str
    beam: int
    epochs: int
    before: float | None
    after: float | None
    time: float | None

    @property
    def point(self) -> tuple[int, int]:
        """The search point."""
        return self.beam, self.epochs


def _filled(name: str, metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Table:
    return fill(name, Measurements(metrics), config, paper_dir)


def _runs(table: Table, side: str) -> list[Run]:
    """Rows of Table 2, ours or the paper's."""

    def number(value: Any) -> float | None:
        found = getattr(value, side)
        return float(found) if isinstance(found, (int, float)) else None

    return [
        Run(
            str(labels["init"]),
            int(labels["beam"] or 0),
            int(labels["epochs"] or 0),
            *(number(values[key]) for key in ("pre_pv", "post_pv", "q_time")),
        )
        for labels, values in table.rows()
    ]


def _sides(config: Config) -> list[str]:
    return list(PANELS) if View(config).is_paper else ["ours"]


def _far(config: Config) -> str:
    domain = View(config).domain("far")
    return domain[1].label if domain else "far domain"


def _final(runs: list[Run]) -> tuple[str, str]:
    """What the final model is: after PV-tuning where any run has that, else before it."""
    return (
        ("after", "after PV-tuning") if any(run.after is not None for run in runs) else ("before", "before PV-tuning")
    )


@styled
def frontier(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Quality-compute frontier (Table 16): final perplexity over quantisation time."""
    table = _filled("table2", metrics, config, paper_dir)
    sides = _sides(config)
    figure, panels = canvas(5.2 * len(sides), 3.9, len(sides))
    header = next(column.header for column in table.columns if column.key == "q_time")
    labels = []
    for axes, side in zip(panels, sides, strict=True):
        runs = _runs(table, side)
        key, words = _final(runs)
        known = [run for run in runs if getattr(run, key) is not None and run.time is not None]
        if not known:
            in_words(axes, f"{PANELS[side]}: no run has both a perplexity\nand a quantisation time yet.")
            continue
        points = {(run.init, run.point): (run.time or 0.0, float(getattr(run, key))) for run in known}
        labels.append((axes, _frontier_panel(axes, points)))
        axes.set(xlabel=f"{header}: quantisation alone", ylabel=f"{_far(config)} perplexity {words}")
        axes.set_title(PANELS[side])
    place(figure, labels)
    return figure


def _frontier_panel(axes: Axes, points: dict[tuple[str, tuple[int, int]], tuple[float, float]]) -> list[Label]:
    labels = []
    for (init, point), (time, perplexity) in points.items():
        partner = points.get(("OA-EM", point))
        if init == "Greedy" and partner:
            axes.plot(*zip((time, perplexity), partner, strict=True), color="#999999", linestyle="--", linewidth=0.9)
        mark = MARKS[init]
        axes.scatter(time, perplexity, s=52, marker=mark.marker, color=mark.color, facecolor=mark.face, zorder=3)
        if any(dominates(other, (time, perplexity)) for other in points.values()):
            contrast = "white" if mark.face == mark.color else mark.color
            axes.scatter(time, perplexity, s=22, marker="x", color=contrast, linewidth=1.1, zorder=4)
        labels.append(Label(time, perplexity, search_label(point), mark.color, mark.side))
    for mark in MARKS.values():
        axes.scatter([], [], s=52, marker=mark.marker, color=mark.color, facecolor=mark.face, label=mark.label)
    axes.scatter([], [], s=22, marker="x", color="#444444", linewidth=1.1, label="dominated")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
    axes.margins(0.16, 0.2)
    return labels


@styled
def gap(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Perplexity before and after PV-tuning, run by run (Table 2)."""
    table = _filled("table2", metrics, config, paper_dir)
    sides = _sides(config)
    figure, panels = canvas(5.4 * len(sides), 1.3 + 0.32 * len(table.values), len(sides))
    for axes, side in zip(panels, sides, strict=True):
        runs = [run for run in _runs(table, side) if run.before is not None or run.after is not None]
        if not runs:
            in_words(axes, f"{PANELS[side]}: no perplexity before or\nafter PV-tuning yet.")
            continue
        _gap_panel(axes, runs)
        tuned = any(run.after is not None for run in runs)
        axes.set(xlabel=f"{_far(config)} perplexity, logarithmic")
        axes.set_title(f"{PANELS[side]}: {'open before, filled after PV-tuning' if tuned else 'before PV-tuning only'}")
    return figure


def _gap_panel(axes: Axes, runs: list[Run]) -> None:
    for height, run in enumerate(runs):
        mark = MARKS[run.init]
        ends = [value for value in (run.before, run.after) if value is not None]
        axes.plot(ends, [height] * len(ends), color=mark.color, linestyle=mark.line, linewidth=1.4)
        for value, face in ((run.before, "white"), (run.after, mark.color)):
            if value is None:
                continue
            axes.scatter(value, height, s=42, marker=mark.marker, color=mark.color, facecolor=face, zorder=3)
            right = value == max(ends)
            style: dict[str, Any] = {"ha": "left" if right else "right", "va": "center", "fontsize": 7.5}
            shift = (8 if right else -8, 0)
            axes.annotate(four_digits(value), (value, height), xytext=shift, textcoords="offset points", **style)
    for boundary in range(2, len(runs), 2):
        axes.axhline(boundary - 0.5, color="#dddddd", linewidth=0.8)
    values = [value for run in runs for value in (run.before, run.after) if value is not None]
    stretch = max((max(values) / min(values)) ** 0.16, 1.08)
    logarithmic(axes.xaxis, min(values) / stretch, max(values) * stretch)
    axes.set_yticks(range(len(runs)), [f"{run.init}  {search_label(run.point)}" for run in runs])
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


@styled
def beam(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Response to the beam width at the full epoch limit, before and after PV-tuning (section 5.2)."""
    table = _filled("table2", metrics, config, paper_dir)
    stages = {"before": "before PV-tuning", "after": "after PV-tuning"}
    wanted = [(side, key) for side in _sides(config) for key in stages]
    figure, panels = canvas(9.0, 3.3 * len(wanted) / 2, 2, len(wanted) // 2)
    labels = []
    for axes, (side, key) in zip(panels, wanted, strict=True):
        runs = _runs(table, side)
        full = max((run.epochs for run in runs), default=0)
        lines: dict[str, list[tuple[int, float]]] = {init: [] for init in MARKS}
        for run in runs:
            value = getattr(run, key)
            if run.epochs == full and value is not None:
                lines[run.init].append((run.beam, value))
        if not any(lines.values()):
            reason = "yet" if View(config).has_pv or key == "before" else "(this grid has no PV-tuning)"
            in_words(axes, f"{PANELS[side]}: no perplexity\n{stages[key]} {reason}.")
            continue
        labels.append((axes, _beam_panel(axes, lines)))
        axes.set(xlabel=f"beam width b (e={full})", ylabel=f"{_far(config)} perplexity")
        axes.set_title(f"{PANELS[side]}, {stages[key]}")
    place(figure, labels)
    return figure


def _beam_panel(axes: Axes, lines: dict[str, list[tuple[int, float]]]) -> list[Label]:
    labels = []
    for init, points in lines.items():
        if not points:
            continue
        mark = MARKS[init]
        beams, values = zip(*sorted(points), strict=True)
        axes.plot(beams, values, color=mark.color, linestyle=mark.line, marker=mark.marker, markerfacecolor=mark.face)
        labels += [Label(*point, four_digits(point[1]), mark.color, mark.side) for point in sorted(points)]
        labels.append(Label(beams[-1], values[-1], init, mark.color, "right", 9))
    known = [value for points in lines.values() for _, value in points]
    widths = sorted({width for points in lines.values() for width, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xlim(widths[0] / 1.35, widths[-1] * 1.9)
    plain_ticks(axes.xaxis, widths)
    axes.margins(y=0.18)
    if max(known) > 3 * min(known):
        stretch = (max(known) / min(known)) ** 0.15
        logarithmic(axes.yaxis, min(known) / stretch, max(known) * stretch)
    return labels


@styled
def domains(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Ratio greedy / OA-EM by domain before PV-tuning (Table 5)."""
    table = _filled("table5", metrics, config, paper_dir)
    sides = _sides(config)
    figure, (axes,) = canvas(4.2 + len(sides), 3.5)
    width = 0.84 / len(sides) if len(sides) > 1 else 0.55
    drawn = [1.4]
    for shift, side in enumerate(sides):
        color, hatch = BARS[side]
        for index, (_, values) in enumerate(table.rows()):
            ratio = getattr(values["ratio"], side)
            middle = index + (shift - (len(sides) - 1) / 2) * width
            style: dict[str, Any] = {"ha": "center", "va": "bottom"}
            if not isinstance(ratio, float):
                reason = values["ratio"].missing if side == "ours" else "not reported"
                axes.text(middle, 1.04, f"{PANELS[side]}:\n{reason}", fontsize=7, color="#444444", **style)
                continue
            drawn.append(ratio)
            axes.bar(middle, ratio, width * 0.92, facecolor=color, edgecolor=BARS["ours"][0], hatch=hatch)
            axes.annotate(f"{ratio:.2f}", (middle, ratio), xytext=(0, 3), textcoords="offset points", **style)
    axes.axhline(1, color="black", linewidth=0.9)
    names = [f"{labels['domain']}\n{labels['benchmark']}" for labels, _ in table.rows()]
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="greedy / OA-EM perplexity before PV", ylim=(0, max(drawn) * 1.18), xlim=(-0.6, len(names) - 0.4))
    axes.grid(axis="x", visible=False)
    if len(sides) > 1:
        for side, (color, hatch) in BARS.items():
            axes.bar(-9, 0, facecolor=color, edgecolor=BARS["ours"][0], hatch=hatch, label=PANELS[side])
        axes.legend(loc="upper left")
    return figure


@styled
def severity_rho(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Severity of the greedy start against the representational ratio: every model and geometry (sections 1 and 7)."""
    table = _filled("severity", metrics, config, paper_dir)
    figure, (axes,) = canvas(7.0, 4.0)
    shapes = dict(zip(dict.fromkeys(labels["model"] for labels, _ in table.rows()), "osD^v<>PX*" * 10, strict=False))
    known: list[tuple[dict[str, Any], float, float, float]] = []
    for names, values in table.rows():
        low, high, ratio = (values[key].ours for key in ("rho_min", "rho_max", "pre_ratio"))
        if isinstance(low, float) and isinstance(high, float) and isinstance(ratio, float):
            known.append((names, low, high, ratio))
    if not known:
        in_words(
            axes, "No model and geometry has both the rho of its layers\nand the perplexity of greedy and OA-EM yet."
        )
        return figure
    labels = []
    for names, low, high, ratio in known:
        centre = (low * high) ** 0.5
        axes.plot([low, high], [ratio, ratio], color="#1f4e79", linewidth=1.6, marker="|", markersize=8)
        axes.scatter(centre, ratio, s=46, marker=shapes[names["model"]], color="#1f4e79", zorder=3)
        labels += [Label(low, ratio, ""), Label(high, ratio, "")]  # no text: other labels keep clear of the line's ends
        labels.append(Label(centre, ratio, f"{names['model']}, {names['geometry']}: {ratio:.2f}", size=8))
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.axhline(1, color="black", linewidth=0.8)
    logarithmic(
        axes.xaxis, min([*(point[1] for point in known), 0.6]) / 3, max([*(point[2] for point in known), 2]) * 3
    )
    ratios = [1.0, *(point[3] for point in known)]
    if max(ratios) > 10 * min(ratios):
        logarithmic(axes.yaxis, min(ratios) / 1.6, max(ratios) * 1.6)
    else:
        axes.margins(y=0.25)
    axes.set_xlabel("representational ratio rho of the layers (line: smallest to largest)")
    axes.set_ylabel("greedy / OA-EM perplexity before PV")
    place(figure, [(axes, labels)])
    return figure


FIGURES = {
    "seeds": seeds,
    "frontier": frontier,
    "gap": gap,
    "beam": beam,
    "domains": domains,
    "severity_rho": severity_rho,
    "rho_sweep": rho_sweep,
}
"""Every figure by its name."""
