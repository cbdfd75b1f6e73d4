"""The report's first figure: greedy and OA-EM by text, every seed a mark, before and after PV-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oaem.config.schema import Config
from oaem.presentation.claims.values import four_digits
from oaem.presentation.figures.drawing import MARKS, canvas, in_words, logarithmic, styled
from oaem.presentation.headline import Group, groups
from oaem.presentation.tables.build import Measurements, fill

if TYPE_CHECKING:
    import pandas as pd

SHIFTS = {"greedy": ("Greedy", -0.17), "oaem": ("OA-EM", 0.17)}


def first_groups(metrics: pd.DataFrame, config: Config) -> list[Group]:
    """What the grid found at its first rate and search point, a group each for before and after PV-tuning."""
    found = groups(fill("headline", Measurements(metrics), config, ""))
    return [group for group in found if group.subject == found[0].subject]


@styled
def seeds(metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> Figure:
    """Perplexity of greedy and OA-EM on every text at the first rate, a panel before and one after PV-tuning."""
    shown = first_groups(metrics, config)
    figure, panels = canvas(3.6 * max(len(shown), 1), 3.5, max(len(shown), 1))
    if not shown:
        in_words(panels[0], "No run has a perplexity yet.")
    for axes, group in zip(panels, shown, strict=False):
        _panel(axes, group, shown)
    return figure


@styled
def single(group: Group, beside: Sequence[Group]) -> Figure:
    """One panel of `seeds`, on the axis of all groups beside it, for a page that sets panels where they fit."""
    figure, (axes,) = canvas(3.8, 3.5)
    _panel(axes, group, beside)
    return figure


def _panel(axes: Axes, group: Group, beside: Sequence[Group]) -> None:
    names = []
    for middle, (text, role, values) in enumerate(group.texts):
        base = values["fp16"].ours
        if isinstance(base, float):
            axes.plot([middle - 0.36, middle + 0.36], [base, base], color="#444444", linewidth=1.4)
        for init, (label, shift) in SHIFTS.items():
            mark, numbers = MARKS[label], values[init].numbers
            if not numbers:
                continue
            where = middle + shift
            mean = sum(numbers) / len(numbers)
            beside_each_other = [where + 0.07 * (index - (len(numbers) - 1) / 2) for index in range(len(numbers))]
            axes.scatter(
                beside_each_other, numbers, s=16, marker=mark.marker, color=mark.color, facecolor=mark.face, zorder=3
            )
            axes.plot([where - 0.13, where + 0.13], [mean, mean], color=mark.color, linewidth=1.0)
            above = mark.side == "above"
            axes.annotate(
                f"{mean:.0f}" if mean >= 100 else f"{mean:.3g}",
                (where, max(numbers) if above else min(numbers)),
                xytext=(0, 6 if above else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
                color=mark.color,
            )
        ratio = values["ratio"].ours
        names.append(
            f"{text}\n{role}" + (f"\nratio {four_digits(round(ratio, 3))}" if isinstance(ratio, float) else "")
        )
    _dress(axes, group, beside, names)


def _dress(axes: Axes, group: Group, beside: Sequence[Group], names: Sequence[str]) -> None:
    found = [value for each in beside for _, _, values in each.texts for value in values.items() if value[0] != "ratio"]
    numbers = [number for _, value in found for number in value.numbers]
    logarithmic(axes.yaxis, min(numbers) / 1.35, max(numbers) * 1.35)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="perplexity, lower is better", xlim=(-0.5, len(names) - 0.5))
    axes.grid(axis="x", visible=False)
    axes.set_title(group.stage.replace("PV", "PV-tuning"), pad=20)
    for mark in MARKS.values():
        axes.scatter([], [], s=20, marker=mark.marker, color=mark.color, facecolor=mark.face, label=mark.label)
    axes.plot([], [], color="#444444", linewidth=1.4, label="unquantised")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=3, fontsize=8, borderpad=0, columnspacing=1.2)
