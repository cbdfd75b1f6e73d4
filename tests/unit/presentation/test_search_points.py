"""Section "Beam and epochs": numbers of invented archives by hand, and the published ones another way."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from oaem.presentation.findings import EVIDENCE, page
from oaem.presentation.pages import TEXTS
from oaem.presentation.search_points import BENCHES, Bench, SearchPoints
from tests.unit.presentation.findings_page import PAGE, RATIO, STAGES, TEMPLATE, bullet, check_pair, check_ratio, ends
from tests.unit.presentation.paper_metrics import ROOT
from tests.unit.presentation.test_models_compared import LARGE, SMALL, invent

ARCHIVE, NEW = ROOT / "archive", "search-points-2026-12-01"
NARROW, STANDARD, WIDE, SHORT = "b=4, e=100", "b=8, e=100", "b=16, e=100", "b=8, e=5"
TITLE = "## Beam and epochs"
PAPER = BENCHES[0]
OPEN = "; after PV-tuning B at b=4, e=100 and b=8, e=5 and b=16, e=100;"


def test_what_is_quoted(tmp_path: Path) -> None:
    invent(tmp_path / "evidence-2026-01-01", SMALL, {42: (100, 90), 43: (102, 88)})
    folder = tmp_path / "search-points-2026-01-02"
    invent(folder, SMALL, {42: (120, 96), 43: (130, 92)}, (4, 100))
    invent(folder, SMALL, {42: (1, 1)}, (8, 100))
    invent(folder, SMALL, {42: (90, 88)}, (16, 100))
    invent(folder, SMALL, {43: (110, 99)}, (8, 5))
    invent(folder, LARGE, {42: (5, 6)}, (16, 100))
    points = SearchPoints(PAPER, tmp_path)
    assert points.shown() == [NARROW, SHORT, STANDARD, WIDE]
    assert points.shown("post_pv") == []
    assert points.widened("pre_pv") == (NARROW, WIDE)
    assert points.widened("post_pv") is None
    assert points.prolonged("pre_pv") == (SHORT, STANDARD)
    assert points.steps("pre_pv") == [(NARROW, WIDE), (SHORT, STANDARD)]
    assert points.steps("post_pv") == []
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
    assert points.intervals(STANDARD, NARROW, "pre_pv") == "0 above 1, 0 below 1 and 3 around it"
    assert points.absent("post_pv") == f"{NARROW} and {SHORT} and {STANDARD} and {WIDE}"
    assert points.folders() == "`archive/evidence-2026-01-01`, `archive/search-points-2026-01-02`"


def test_where_the_interval_of_a_change_lies(tmp_path: Path) -> None:
    """With the narrow beam greedy is twice as high as OA-EM, with the wide one half as high."""
    for beam, pairs in ((4, {42: (200, 100), 43: (202, 100)}), (16, {42: (50, 100), 43: (51, 100)})):
        invent(tmp_path / "search-points-2026-01-02", SMALL, pairs, (beam, 100))
    points = SearchPoints(PAPER, tmp_path)
    assert points.intervals(WIDE, NARROW, "pre_pv") == "0 above 1, 3 below 1 and 0 around it"
    assert points.intervals(NARROW, WIDE, "pre_pv") == "3 above 1, 0 below 1 and 0 around it"


def test_the_page_grows_with_an_archive(tmp_path: Path) -> None:
    for folder in ARCHIVE.iterdir():
        if folder.is_dir() and not folder.name.startswith("search-points-"):
            (tmp_path / folder.name).symlink_to(folder)
    before = page(TEMPLATE, tmp_path)
    assert f"From {NARROW} to {WIDE}" not in before and OPEN in before
    for point, greedy in (((4, 100), 110), ((16, 100), 95)):
        for stage in ("pre_pv", "post_pv"):
            invent(tmp_path / NEW, SMALL, {42: (greedy, 90)}, point, stage)
    after = page(TEMPLATE, tmp_path)
    section = after.partition(TITLE)[2].partition("\n## ")[0]
    assert OPEN not in after
    assert f"; after PV-tuning B at {SHORT};" in after
    assert f"`archive/{EVIDENCE}`, `archive/{NEW}`" in section
    found = re.findall(r"^\| paper \| (b=\d+, e=\d+) \|", section, re.M)
    assert found == [label for _ in range(2) for label in (NARROW, STANDARD, WIDE) for _ in range(3)]
    told = f"greedy's far perplexity {95 / 110:.3f}, OA-EM's\n  1.000. The ratio {95 / 110:.3f} far"
    assert section.count(f"- **From {NARROW} to {WIDE}, ") == section.count(told) == 2
    assert f"Greedy at {WIDE} over OA-EM at {NARROW}, far:\n  {95 / 90:.3f}." in section
    assert f"From {SHORT}" not in section


def perplexities(bench: Bench, label: str, stage: str, text: str) -> pd.DataFrame:
    """Rows the seeds, columns the initialisations; of several archives the first one's."""
    beam, epochs = re.findall(r"\d+", label)
    frames = [pd.read_csv(path) for kind in bench.kinds for path in sorted(ARCHIVE.glob(f"{kind}/metrics.csv"))]
    rows = pd.concat(frames).query("metric == 'perplexity' and stage == @stage and dataset == @text")
    rows = rows[(rows.beam_width == int(beam)) & (rows.max_epochs == int(epochs)) & (rows.geometry == bench.geometry)]
    return rows.drop_duplicates(["init", "seed"]).pivot(index="seed", columns="init", values="value").dropna()


def test_every_row_is_the_archives() -> None:
    section = PAGE.read_text(encoding="utf-8").partition(TITLE)[2].partition("\n## ")[0]
    found = re.findall(r"^\| (paper|demonstration) \|" + r" ([^|]*?) \|" * 8 + "$", section, re.M)
    assert {budgets for budgets, *_ in found} == {"paper", "demonstration"}
    for budgets, label, words, text, count, greedy, oaem, ratio, better in found:
        bench = next(each for each in BENCHES if each.budgets == budgets)
        dataset = next(key for key, name in TEXTS.items() if name == text)
        runs = perplexities(bench, label, STAGES[words], dataset)
        check_pair(runs, greedy, oaem, ratio)
        assert (count, better) == (str(len(runs)), f"{(runs.greedy > runs.oaem).sum()} of {len(runs)}")


def test_every_step_is_the_archives() -> None:
    section = PAGE.read_text(encoding="utf-8").partition(TITLE)[2].partition("\n## ")[0]
    steps = re.findall(
        r"^- \*\*From (.*?) to (.*?), (\w+ PV)-tuning, (\w+)\*\*: (.*?)(?=\n- |\n\n|\Z)", section, re.M | re.S
    )
    assert len(steps) >= 3
    for first, second, words, budgets, told in steps:
        bench = next(each for each in BENCHES if each.budgets == budgets)
        points = [[perplexities(bench, label, STAGES[words], text) for text in TEXTS] for label in (first, second)]
        far = list(TEXTS).index("boolq")
        before, after = (point[far] for point in points)
        whole = [[runs["greedy"] / runs["oaem"] for runs in point] for point in points]
        ratios = [later / earlier for earlier, later in zip(*whole, strict=True)]
        by_text = dict(zip(TEXTS, ratios, strict=True))
        expected = [after[init] / before[init] for init in ("greedy", "oaem")]
        expected += [by_text[text] for text in ("boolq", "lambada", "wikihow")] + [after["greedy"] / before["oaem"]]
        shown = re.findall(RATIO, told)
        for each, values in zip(shown, expected, strict=True):
            check_ratio(pd.DataFrame({"greedy": values, "oaem": 1.0}).dropna(), each)
        ends = [stats.ttest_1samp(values.dropna().map(math.log), 0).confidence_interval(0.95) for values in ratios]
        below, above = sum(each.high < 0 for each in ends), sum(each.low > 0 for each in ends)
        assert f"intervals: {above} above 1, {below} below 1 and {3 - above - below} around it" in " ".join(
            told.split()
        )


def test_what_the_answer_says_of_beam_and_epochs_is_in_their_section() -> None:
    """Step by step, before and after PV-tuning; each ratio is held to the archives there."""
    answer = bullet("Does a wider beam help greedy more, or do more epochs?")
    section = " ".join(PAGE.read_text().partition("## Beam and epochs\n")[2].partition("\n## ")[0].split())
    steps = re.findall(r"from (b=\d+, e=\d+) to (b=\d+, e=\d+) (.*?) before and (.*?) after PV-tuning", answer)
    assert len(steps) == 2
    for first, second, *ratios in steps:
        for ratio, words in zip(ratios, STAGES, strict=True):
            line = section.partition(f"**From {first} to {second}, {words}-tuning, paper**")[2].partition("**")[0]
            assert f"The ratio {ratio} far" in line
            low, high = ends(ratio)
            assert low < 1 < high, "undecided"
