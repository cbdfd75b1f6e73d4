"""Section "Beam and epochs" of docs/findings-details.md: one pair at several search points, and what they change.

It fills in as archives come: `search-points-{date}`, of config/search-points.yaml, beside the evidence, and
`small-search-points-{date}`, of config/small-search-points.yaml, at the demonstration's budgets.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from oaem.presentation.archived import ARCHIVE, archived, joined_or_empty, paths
from oaem.presentation.pages import DATE, INITS, TEXTS
from oaem.presentation.pairs import Pairs, over_seeds
from oaem.presentation.spread import paired_ratios
from oaem.presentation.trend import Tally
from oaem.presentation.view import search_label

MODEL = "smollm2-135m"
Point = tuple[int, int]  # beam width, most epochs


@dataclass(frozen=True)
class Bench:
    """Search points with the same other settings: their geometry and the kinds of archives that hold them.

    Of what two kinds hold the first one's rows stand. beams: from the narrowest on, with as many epochs; epochs: from
    the fewest on, with one beam.
    """

    budgets: str
    geometry: str
    kinds: tuple[str, ...]
    beams: tuple[Point, ...]
    epochs: tuple[Point, ...]

    @property
    def points(self) -> list[Point]:
        """Each once, by beam width and epochs."""
        return sorted({*self.beams, *self.epochs})


BENCHES = (
    Bench(
        "paper", "2bpp-2x8g8", (f"evidence{DATE}", f"search-points{DATE}"),
        beams=((4, 100), (8, 100), (16, 100)), epochs=((8, 5), (8, 100)),
    ),
    Bench(
        "demonstration", "2bpp-2x6g6", (f"small-search-points{DATE}",),
        beams=((1, 2), (4, 2), (16, 2)), epochs=((4, 2), (4, 5)),
    ),
)  # fmt: skip


class SearchPoints(Pairs):
    """The pairs of runs of a bench, by search point."""

    def __init__(self, bench: Bench, archives: Path) -> None:
        self.bench, self.budgets = bench, bench.budgets
        folders = [sorted(archives.glob(kind)) for kind in bench.kinds]
        runs = {}
        for point in bench.points:
            rows = joined_or_empty([archived(each, bench.geometry, point).metrics for each in folders])
            runs[search_label(point)] = rows[rows["model"] == MODEL]
        super().__init__(runs)

    def folders(self) -> str:
        """The archives that hold them."""
        return paths(sorted({name for label in self.shown() for name in self.runs[label][ARCHIVE]}))

    def widened(self, stage: str) -> tuple[str, str] | None:
        """The narrowest and the widest beam with a pair at a stage; None of fewer than two."""
        return self._ends(self.bench.beams, stage)

    def prolonged(self, stage: str) -> tuple[str, str] | None:
        """The same of the fewest and the most epochs."""
        return self._ends(self.bench.epochs, stage)

    def steps(self, stage: str) -> list[tuple[str, str]]:
        """Both, as far as they are there: from which point to which."""
        return [ends for ends in (self.widened(stage), self.prolonged(stage)) if ends]

    def greedy_over_oaem(self, greedy: str, oaem: str, stage: str, text: str) -> str:
        """Greedy's perplexity at one point over OA-EM's at another."""
        points = zip((greedy, oaem), INITS, strict=True)
        return over_seeds(paired_ratios(*(self.by_seed(label, init, stage, text) for label, init in points)))

    def change_of_ratio(self, later: str, earlier: str, stage: str, text: str) -> str:
        """The ratio greedy / OA-EM at one point over that at another, paired by seed."""
        return over_seeds(self._change(later, earlier, stage, text))

    def intervals(self, later: str, earlier: str, stage: str) -> str:
        """Where the intervals of that change lie, one a text."""
        return Tally([self._change(later, earlier, stage, text) for text in TEXTS]).intervals

    def absent(self, stage: str) -> str:
        """The points that have no pair of runs at a stage."""
        return " and ".join(label for label in self.runs if label not in self.shown(stage))

    def _change(self, later: str, earlier: str, stage: str, text: str) -> dict[int, float]:
        return paired_ratios(*(self.ratios(label, stage, text) for label in (later, earlier)))

    def _ends(self, points: Collection[Point], stage: str) -> tuple[str, str] | None:
        labels = [label for label in map(search_label, points) if label in self.shown(stage)]
        return (labels[0], labels[-1]) if len(labels) > 1 else None
