"""Section "Beam and epochs" of archives still to come: its numbers by hand, and that it is not there before."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from oaem.presentation.findings import EVIDENCE, page
from oaem.presentation.search_points import SearchPoints
from tests.unit.presentation.paper_metrics import ROOT
from tests.unit.presentation.test_findings import TEMPLATE
from tests.unit.presentation.test_models_compared import LARGE, SMALL, invent

ARCHIVE, NEW = ROOT / "archive", "search-points-2026-12-01"
NARROW, STANDARD, WIDE, SHORT = "b=4, e=100", "b=8, e=100", "b=16, e=100", "b=8, e=5"
TITLE = "## Beam and epochs"
OPEN = "; after PV-tuning B at b=8, e=5 and b=4, e=100 and b=16, e=100;"


def test_what_is_quoted(tmp_path: Path) -> None:
    invent(tmp_path / "evidence-2026-01-01", SMALL, {42: (100, 90), 43: (102, 88)})
    folder = tmp_path / "search-points-2026-01-02"
    invent(folder, SMALL, {42: (120, 96), 43: (130, 92)}, (4, 100))
    invent(folder, SMALL, {42: (1, 1)}, (8, 100))
    invent(folder, SMALL, {42: (90, 88)}, (16, 100))
    invent(folder, SMALL, {43: (110, 99)}, (8, 5))
    invent(folder, LARGE, {42: (5, 6)}, (16, 100))
    points = SearchPoints(tmp_path)
    assert points.shown() == [SHORT, NARROW, STANDARD, WIDE]
    assert points.shown("post_pv") == []
    assert points.widened("pre_pv") == (NARROW, WIDE)
    assert points.widened("post_pv") is None
    assert points.shortened("pre_pv") == (STANDARD, SHORT)
    assert points.by_seed(STANDARD, "greedy", "pre_pv", "boolq") == {42: 100, 43: 102}, "the evidence's rows stand"
    assert points.by_seed(WIDE, "greedy", "pre_pv", "boolq") == {42: 90}, "of this model alone"
    change = points.across(STANDARD, NARROW, "greedy", "pre_pv", "boolq")
    mean = math.sqrt(100 / 120 * 102 / 130)
    assert float(change.split()[0]) == pytest.approx(mean, abs=5e-4)
    assert points.across(WIDE, NARROW, "oaem", "pre_pv", "boolq") == f"{88 / 96:.3f}"
    assert points.across(SHORT, STANDARD, "oaem", "pre_pv", "boolq") == f"{99 / 88:.3f}"
    assert points.greedy_over_oaem(WIDE, NARROW, "pre_pv", "boolq") == f"{90 / 96:.3f}"
    assert points.change_of_ratio(WIDE, NARROW, "pre_pv", "boolq") == f"{90 / 88 / (120 / 96):.3f}"
    assert points.absent("pre_pv") == ""
    assert points.absent("post_pv") == f"{SHORT} and {NARROW} and {STANDARD} and {WIDE}"
    assert points.folders() == "`archive/evidence-2026-01-01`, `archive/search-points-2026-01-02`"


def test_the_page_grows_with_an_archive(tmp_path: Path) -> None:
    for folder in ARCHIVE.iterdir():
        if folder.is_dir() and not folder.name.startswith("search-points-"):
            (tmp_path / folder.name).symlink_to(folder)
    before = page(TEMPLATE, tmp_path)
    assert TITLE not in before and OPEN in before
    for point, greedy in (((4, 100), 110), ((16, 100), 95)):
        for stage in ("pre_pv", "post_pv"):
            invent(tmp_path / NEW, SMALL, {42: (greedy, 90)}, point, stage)
    after = page(TEMPLATE, tmp_path)
    section = after.partition(TITLE)[2].partition("\n## ")[0]
    assert OPEN not in after
    assert f"; after PV-tuning B at {SHORT};" in after
    assert f"is {95 / 90 / (110 / 90):.3f} of what it was far" in section
    assert f"`archive/{EVIDENCE}`, `archive/{NEW}`" in section
    rows = re.findall(r"^\| (b=\d+, e=\d+) \| (.*?) \| (.*?) \| (\d) \|", section, re.M)
    assert [row[0] for row in rows] == [label for _ in range(2) for label in (NARROW, STANDARD, WIDE) for _ in range(3)]
    told = f"greedy's far perplexity is {95 / 110:.3f} of what it was, OA-EM's\n  1.000"
    assert section.count(f"- **From {NARROW} to {WIDE}, ") == section.count(told) == 2
    assert f"Greedy with the widest beam over OA-EM with the narrowest: {95 / 90:.3f}." in section
    assert "Five epochs" not in section
