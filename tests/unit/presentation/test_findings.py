"""docs/findings.md: what is committed is what the archive gives, and its numbers are recomputed here another way."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from scipy import stats

from oaem.config.geometry import Geometry
from oaem.presentation.figures.drawing import save
from oaem.presentation.findings import (
    EVIDENCE,
    INITS,
    ORIGINAL,
    REPEATED,
    SMALL_SWEEP,
    SWEEP,
    SWEPT,
    TEXTS,
    figures,
    page,
    pages,
)
from tests.unit.presentation.findings_page import (
    ARCHIVE,
    LAYERS,
    PAGE,
    RATIO,
    STAGES,
    TEMPLATE,
    bullet,
    check_mean,
    check_pair,
    check_ratio,
    close,
    measured,
    perplexities,
)
from tests.unit.presentation.paper_metrics import PAPER, ROOT


@pytest.mark.slow
def test_the_page_and_its_figures_are_those_of_the_archive(tmp_path) -> None:
    whole = page(TEMPLATE, ARCHIVE)
    for name, text in pages(whole).items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run python -m oaem.presentation.findings"
    assert PAGE.read_text() == whole
    drawn = figures(ROOT)
    assert {f"{name}.svg" for name in drawn} == {path.name for path in (ROOT / "docs/figures").iterdir()}
    for name, figure in drawn.items():
        save(figure, tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_bytes() == (ROOT / f"docs/figures/{name}.svg").read_bytes()


def test_every_row_of_the_table_is_the_archives() -> None:
    found = re.findall(
        r"^\| ([ABC]) \| (.* PV) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M
    )
    assert len(found) == 18
    for label, stage, text, greedy, oaem, ratio, better in found:
        dataset = next(key for key, name in TEXTS.items() if name == text)
        runs = perplexities(label, STAGES[stage]).loc[dataset]
        assert len(runs) == 3
        check_pair(runs, greedy, oaem, ratio)
        assert better == f"{(runs.greedy > runs.oaem).sum()} of 3"


def test_every_row_of_the_sweep_is_the_archives() -> None:
    found = re.findall(r"^\| (\d+ bit over \d+) \|" + r" ([^|]*?) \|" * 7 + "$", PAGE.read_text(), re.M)
    swept = [case.label for case in SWEEP if len(perplexities(case.label, "pre_pv").dropna())]
    assert [(label, text) for label, text, *_ in found] == [(label, text) for label in swept for text in TEXTS.values()]
    for label, text, *cells in found:
        dataset = next(key for key, name in TEXTS.items() if name == text)
        for stage, shown in (("pre_pv", cells[:3]), ("post_pv", cells[3:])):
            pairs = perplexities(label, stage).dropna()
            if len(pairs):
                check_pair(pairs.loc[dataset], *shown)
            else:
                assert shown == ["not run"] * 3


def test_every_geometry_of_the_sweep_is_the_archives() -> None:
    found = re.findall(r"^\| (\d+ bit over \d+) \|" + r" ([^|]*?) \|" * 4 + "$", PAGE.read_text(), re.M)
    assert [label for label, *_ in found] == [c.label for c in SWEEP if len(perplexities(c.label, "pre_pv").dropna())]
    for label, bits, rho, *errors in found:
        geometry = Geometry.parse(next(case.geometry for case in SWEEP if case.label == label))
        stored = sum(rows * columns * geometry.true_bits(rows, columns) for rows, columns in LAYERS)
        assert close(bits, stored / sum(rows * columns for rows, columns in LAYERS))
        ends = [geometry.rho(192, 576), geometry.rho(1536, 576)]
        assert [float(end) for end in rho.split(" to ")] == [pytest.approx(end, rel=0.05) for end in ends]
        frame = measured(label)
        for init, shown in zip(("greedy", "oaem"), errors, strict=True):
            assert close(shown, frame[(frame.metric == "relative_error") & (frame.init == init)]["value"].mean())


def test_every_row_of_original_inputs_is_the_archives() -> None:
    found = re.findall(r"^\| (greedy|OA-EM) \|" + r" ([^|]*?) \|" * 6 + "$", PAGE.read_text(), re.M)
    assert len(found) == 12
    lower = 0
    for name, stage, text, sequential, original, ratio, better in found:
        init = next(key for key, shown in INITS.items() if shown == name)
        dataset = next(key for key, shown in TEXTS.items() if shown == text)
        first, second = (perplexities(label, STAGES[stage]).loc[dataset][init] for label in ("B", ORIGINAL.label))
        assert list(first.index) == list(second.index) == [42, 43, 44]
        check_mean(sequential, first)
        check_mean(original, second)
        logs = first.map(math.log), second.map(math.log)
        interval = stats.ttest_rel(*logs).confidence_interval(0.95)
        expected = [(logs[0] - logs[1]).mean(), interval.low, interval.high]
        for shown, value in zip(re.findall(r"[\d.]+", ratio), expected, strict=True):
            assert close(shown, math.exp(value))
        assert better == f"{(first > second).sum()} of 3"
        lower += expected[0] > 0
        assert expected[0] > -0.01, "or it would not be the same to a hundredth"
    assert lower == 11, "lower in every row but one"


def test_what_is_said_of_two_makings_is_the_archives() -> None:
    text = bullet("Made again")
    ends = re.findall(r"([\d.]+) to ([\d.]+) %", text)
    ratios = re.findall(RATIO, text)
    assert (len(ends), len(ratios)) == (2, 4)
    for place, stage in enumerate(STAGES.values()):
        first, again = (perplexities(label, stage).loc["boolq"] for label in ("B", REPEATED.label))
        apart = (first / again).stack()
        found = 100 * (pd.concat([apart, 1 / apart], axis=1).max(axis=1) - 1)
        assert close(ends[place][0], found.min()) and close(ends[place][1], found.max())
        check_ratio(again, ratios[place])
        averaged = (first.map(math.log) + again.map(math.log)).map(lambda log: math.exp(log / 2))
        check_ratio(averaged, ratios[2 + place])
        assert (again.greedy > again.oaem).all()
    assert "3 of 3 and 3 of 3 seeds, but equality within the intervals" in text
    assert all(float(ratio.split("[")[1].split(",")[0]) < 1 for ratio in ratios[:2]), "equality within"


def test_what_two_archives_measured_is_the_same() -> None:
    """The runs of one case may lie in both: then one stands for the other."""
    first, second = (pd.read_csv(ARCHIVE / name / "metrics.csv") for name in (EVIDENCE, SWEPT))
    key = ["geometry", "init", "beam_width", "max_epochs", "seed", "stage", "dataset", "metric"]
    both = first.merge(second, on=key, suffixes=("", "_again"))
    both = both[both["metric"] != "seconds"]
    pd.testing.assert_series_equal(both["value"], both["value_again"], check_names=False, check_exact=True)


def test_what_the_text_says_in_words() -> None:
    for label, better in (("A", 0), ("B", 9), ("C", 9)):
        runs = perplexities(label, "pre_pv")
        assert (runs.oaem < runs.greedy).sum() == better
    for label in ("B", "C"):
        for stage in STAGES.values():
            ratio = perplexities(label, stage).eval("greedy / oaem")
            assert (ratio["boolq"] > ratio["wikihow"]).all(), "larger with each seed"
    small = perplexities("C", "pre_pv").eval("greedy / oaem")
    for label in ("6 bit over 6", "4 bit over 4"):
        full = perplexities(label, "pre_pv").dropna().eval("greedy / oaem")
        assert (small.reindex(full.index) > full).all(), "greedy is further behind with the smaller search"
    table = pd.read_csv(PAPER / "tables/table6.csv").set_index("init")["wiki2"]
    assert f"{table['Baseline']:.2f} against {table['+ OA-EM']:.2f}" in PAGE.read_text(encoding="utf-8")


def test_what_the_page_says_of_the_choice_of_an_epoch() -> None:
    stages = ("post_pv", "post_pv_validation", "post_pv_last")
    far = pd.concat(
        [pd.concat([perplexities(label, stage).loc["boolq"].stack() for stage in stages], axis=1) for label in "ABC"]
    )
    spread = far.max(axis=1) / far.min(axis=1)
    same, runs, most = re.findall(
        r"same state in (\d+) of (\d+) runs,\n.*differs by ([\d.]+) % at most", PAGE.read_text()
    )[0]
    assert (int(same), int(runs)) == ((spread == 1).sum(), len(spread))
    assert close(most, 100 * (spread.max() - 1))


def test_no_measured_number_is_written_by_hand() -> None:
    """Decimals outside calls: what the paper prints, the quantile and its consequence, the paper's own number."""
    template = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    assert set(re.findall(r"\d+\.\d+", template)) == {"2604.08118", "4.30", "2.5", "9.52", "8.87", "12.71"}


def test_what_the_readme_quotes_is_on_the_page() -> None:
    text = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## What three seeds say")[2].partition("\n## ")[0]
    )
    page_text, quoted = PAGE.read_text(encoding="utf-8"), re.findall(r"[\d.]+ ± [\d.]+", text)
    assert len(quoted) == 18
    assert not [each for each in quoted if each not in page_text]
    cases = [("A", "pre_pv"), ("A", "post_pv"), ("B", "pre_pv"), ("B", "post_pv"), ("C", "pre_pv"), ("C", "post_pv")]
    ratios = re.findall(r"\| (\d\.\d\d) \|$", text, re.M)
    swept = [(f"{bits} bit over {bits}", "pre_pv") for bits in (12, 8, 6, 4, 3)]
    swept += [(f"{bits} bit over {bits}", "post_pv") for bits in (12, 8, 6, 4, 3)]
    swept += [(case.label, "pre_pv") for case in SMALL_SWEEP]
    sentence = re.findall(r"(?<!± )\b[01]\.\d\d\b(?! to)", text.rpartition("|")[2].partition("**With other")[0])
    for shown, (label, stage) in zip([*ratios, *sentence], [*cases, *swept], strict=True):
        logs = perplexities(label, stage).dropna().loc["boolq"].map(math.log)
        assert close(shown, math.exp((logs["greedy"] - logs["oaem"]).mean())), (label, stage)
    percent = re.findall(r"some (\d) and (\d) % more for ten times the rho", text)[0]
    slopes = re.findall(RATIO, bullet("The order of the three cases is the paper's"))[2:4]
    assert [f"{100 * (float(slope.split()[0]) - 1):.0f}" for slope in slopes] == list(percent)
