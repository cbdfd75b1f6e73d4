"""Section "Beam and epochs" of docs/findings.md: B's geometry at the paper's other search points, and what they change.

It fills in as archives come: `search-points-{date}`, of config/search-points.yaml, beside the evidence.
"""

from __future__ import annotations

from pathlib import Path

from oaem.presentation.archived import ARCHIVE, archived, joined_or_empty, paths
from oaem.presentation.pages import DATE, INITS
from oaem.presentation.pairs import Pairs, over_seeds
from oaem.presentation.spread import paired_ratios
from oaem.presentation.view import search_label

GEOMETRY, MODEL = "2bpp-2x8g8", "smollm2-135m"
STANDARD, FEW_EPOCHS = (8, 100), (8, 5)
BEAMS = ((4, 100), STANDARD, (16, 100))
KINDS = (f"evidence{DATE}", f"search-points{DATE}")  # of what both hold, the first one's rows stand


class SearchPoints(Pairs):
    """The pairs of runs at each search point, the widest beam last."""

    def __init__(self, archives: Path) -> None:
        folders = [sorted(archives.glob(kind)) for kind in KINDS]
        runs = {}
        for point in (FEW_EPOCHS, *BEAMS):
            rows = joined_or_empty([archived(each, GEOMETRY, point).metrics for each in folders])
            runs[search_label(point)] = rows[rows["model"] == MODEL]
        super().__init__(runs)

    def folders(self) -> str:
        """The archives that hold them."""
        return paths(sorted({name for label in self.shown() for name in self.runs[label][ARCHIVE]}))

    def widened(self, stage: str) -> tuple[str, str] | None:
        """The narrowest and the widest beam with a pair at a stage, all epochs; None of fewer than two."""
        beams = [label for label in map(search_label, BEAMS) if label in self.shown(stage)]
        return (beams[0], beams[-1]) if len(beams) > 1 else None

    def shortened(self, stage: str) -> tuple[str, str] | None:
        """All epochs and few, if both have a pair at a stage."""
        points = search_label(STANDARD), search_label(FEW_EPOCHS)
        return points if set(points) <= set(self.shown(stage)) else None

    def greedy_over_oaem(self, greedy: str, oaem: str, stage: str, text: str) -> str:
        """Greedy's perplexity at one point over OA-EM's at another."""
        points = zip((greedy, oaem), INITS, strict=True)
        return over_seeds(paired_ratios(*(self.by_seed(label, init, stage, text) for label, init in points)))

    def change_of_ratio(self, later: str, earlier: str, stage: str, text: str) -> str:
        """The ratio greedy / OA-EM at one point over that at another, paired by seed."""
        return over_seeds(paired_ratios(*(self.ratios(label, stage, text) for label in (later, earlier))))

    def absent(self, stage: str) -> str:
        """The points that have no pair of runs at a stage."""
        return " and ".join(label for label in self.runs if label not in self.shown(stage))
