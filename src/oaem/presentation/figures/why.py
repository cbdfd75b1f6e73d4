"""The figure of "Why": where greedy's layers are worse, what one layer does in the other's model, what errors do."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oaem.presentation.figures.drawing import MARKS, Mark, canvas, in_words, logarithmic, styled
from oaem.presentation.spread import ratio_spread
from oaem.presentation.why import BLOCK, ERRORS, KIND, LINEARS, OTHER, UNQUANTISED, WALK, Inquiry, short

INITS = {"greedy": MARKS["Greedy"], "oaem": MARKS["OA-EM"]}
# What of a layer's error: name, colour, marker, place within a row.
MEASURES = {
    WALK: ("on the run's own inputs", "#777777", "x", -0.3),
    "all": ("on the model's inputs: all", "black", "o", -0.1),
    "few": ("the first 1 % of directions", "#b07a1a", "^", 0.1),
    "others": ("the other 99 %", "#2f7d6d", "D", 0.3),
}
REPLACED = (
    ("untouched", "", ""),
    ("resized to\nthe other's", "size", OTHER),
    ("first 1 % from\nthe other", "few directions", OTHER),
    ("first 1 %\nwithout error", "few directions", UNQUANTISED),
    ("other 99 %\nwithout error", "other directions", UNQUANTISED),
)


@styled
def why(inquiry: Inquiry, text: str) -> Figure:
    """Of one case, every seed a mark; perplexity is that on `text`, the name of a dataset."""
    figure, _ = canvas(6.9, 6.6, 0, 0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.15, 1])
    _layers(figure.add_subplot(grid[0, 0]), inquiry)
    _errors(figure.add_subplot(grid[0, 1]), inquiry, text)
    _exchanged(figure.add_subplot(grid[1, :]), inquiry, text)
    return figure


def _layers(axes: Axes, inquiry: Inquiry) -> None:
    """Greedy over OA-EM of the layers' errors, by kind of linear."""
    axes.set_title("a  layer errors compared", pad=42)
    found = [1.0]
    for measure, (name, color, marker, shift) in MEASURES.items():
        for row, linear in enumerate(LINEARS):
            ratios = list(inquiry.error_ratios(measure, linear).values())
            found += ratios
            axes.scatter(ratios, [row + shift] * len(ratios), s=17, marker=marker, color=color, linewidth=1, zorder=3)
        axes.scatter([], [], s=17, marker=marker, color=color, linewidth=1, label=name)
    axes.axvline(1, color="black", linewidth=0.9)
    for row in range(1, len(LINEARS)):
        axes.axhline(row - 0.5, color="#e4e4e4", linewidth=0.6)
    axes.set_yticks(range(len(LINEARS)), LINEARS)
    axes.set(ylim=(len(LINEARS) - 0.5, -0.5), xlabel="greedy / OA-EM; above 1 OA-EM's is smaller")
    axes.grid(axis="y", visible=False)
    logarithmic(axes.xaxis, min(found) / 1.15, max(found) * 1.15)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.08, 0.99), ncols=2, fontsize=7.5, borderpad=0, columnspacing=1.0,
                handletextpad=0.2)  # fmt: skip


def _errors(axes: Axes, inquiry: Inquiry, text: str) -> None:
    """Perplexity with a part of all layers' errors replaced."""
    axes.set_title("b  errors of all layers, replaced", pad=42)
    seeds = inquiry.seeds(ERRORS)
    if not seeds:
        in_words(axes, "Not run yet.")
        return
    original = inquiry.original(text)
    found = [original]
    for init, shift in (("greedy", -0.13), ("oaem", 0.13)):
        untouched = inquiry.untouched(init, text)
        for row, (_, part, giver) in enumerate(REPLACED):
            changes = inquiry.changes(init, part, giver, text) if part else dict.fromkeys(seeds, 1.0)
            values = [untouched[seed] * change for seed, change in changes.items()]
            found += values
            _marks(axes, INITS[init], values, [row + shift] * len(values))
    axes.axvline(original, color="#444444", linewidth=1.4)
    axes.set_yticks(range(len(REPLACED)), [name for name, _, _ in REPLACED], fontsize=8)
    axes.set(ylim=(len(REPLACED) - 0.5, -0.5), xlabel="perplexity, far text")
    axes.grid(axis="y", visible=False)
    logarithmic(axes.xaxis, min(found) / 1.25, max(found) * 1.25)
    axes.annotate("unquantised", (original, -0.42), xytext=(4, 0), textcoords="offset points", va="top", fontsize=7.5)
    _legend(axes, "'s model", ncols=2)


def _exchanged(axes: Axes, inquiry: Inquiry, text: str) -> None:
    """Perplexity over that of greedy's untouched model with one block, or one kind of linear, of the other's."""
    axes.set_title("c  one block, or one kind of linear in all blocks, from the other model", pad=20)
    seeds = inquiry.seeds(BLOCK)
    if not seeds:
        in_words(axes, "Not run yet.")
        return
    blocks, kinds = inquiry.parts(BLOCK), inquiry.parts(KIND)
    kinds.sort(key=lambda kind: LINEARS.index(short(kind)) if short(kind) in LINEARS else len(LINEARS))
    places = [*range(len(blocks)), *(len(blocks) + 1 + 2.5 * index for index in range(len(kinds)))]
    greedy = inquiry.untouched("greedy", text)
    found = []
    for init, mark in INITS.items():
        untouched = inquiry.untouched(init, text)
        level = {seed: untouched[seed] / greedy[seed] for seed in seeds}
        mean = ratio_spread(list(level.values())).mean
        axes.axhline(mean, color=mark.color, linestyle=mark.line, linewidth=1.1)
        for place, part in zip(places, (*blocks, *kinds), strict=True):
            values = [level[seed] * change for seed, change in inquiry.changes(init, part, OTHER, text).items()]
            found += values
            _marks(axes, mark, values, [place] * len(values), upright=True)
    ticks = [index for index in range(len(blocks)) if index % 5 == 0 or index == len(blocks) - 1]
    names = [str(index) for index in ticks] + [short(kind) for kind in kinds]
    axes.set_xticks([*ticks, *places[len(blocks) :]], names)
    axes.set(
        xlim=(-1, places[-1] + 1), ylabel="far perplexity over\ngreedy's untouched", xlabel="block; kind of linear"
    )
    axes.axvline(len(blocks) - 0.1, color="#999999", linewidth=0.8)
    axes.grid(axis="x", visible=False)
    logarithmic(axes.yaxis, min(found) / 1.12, max(found) * 1.12)
    _legend(axes, "'s model, line: untouched", ncols=2)


def _marks(axes: Axes, mark: Mark, values: Sequence[float], places: Sequence[float], upright: bool = False) -> None:
    one, other = (places, values) if upright else (values, places)
    axes.scatter(one, other, s=17, marker=mark.marker, color=mark.color, facecolor=mark.face, linewidth=1, zorder=3)


def _legend(axes: Axes, suffix: str, ncols: int) -> None:
    for mark in INITS.values():
        axes.scatter(
            [], [], s=17, marker=mark.marker, color=mark.color, facecolor=mark.face, label=f"{mark.label}{suffix}"
        )
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=ncols, fontsize=7.5, borderpad=0,
                columnspacing=1.0, handletextpad=0.2)  # fmt: skip
