"""docs/findings.md: what is committed is what the archive gives, and its numbers are recomputed here another way."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from scipy import stats

from oaem.presentation.figures.drawing import save
from oaem.presentation.findings import CASES, TEXTS, figure, page
from tests.unit.presentation.paper_metrics import PAPER, ROOT

PAGE, TEMPLATE, ARCHIVE = ROOT / "docs/findings.md", ROOT / "docs/findings.md.j2", ROOT / "archive"
STAGES = {"before PV": "pre_pv", "after PV": "post_pv"}


def perplexities(label: str, stage: str) -> pd.DataFrame:
    """Rows a seed and text, columns the initialisations."""
    case = next(case for case in CASES if case.label == label)
    metrics = pd.read_csv(ARCHIVE / case.archive / "metrics.csv")
    rows = metrics[(metrics.metric == "perplexity") & (metrics.geometry == case.geometry) & (metrics.stage == stage)]
    return rows.pivot(index=["dataset", "seed"], columns="init", values="value")


def test_the_page_and_its_figure_are_those_of_the_archive(tmp_path) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(TEMPLATE, ARCHIVE), "run python -m oaem.presentation.findings"
    save(figure(ARCHIVE), tmp_path / "findings.svg")
    assert (tmp_path / "findings.svg").read_bytes() == (ROOT / "docs/figures/findings.svg").read_bytes()


def test_every_row_of_the_table_is_the_archives() -> None:
    found = re.findall(
        r"^\| ([ABC]) \| (.* PV) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M
    )
    assert len(found) == 15
    for label, stage, text, greedy, oaem, ratio, better in found:
        dataset = next(key for key, name in TEXTS.items() if name == text)
        runs = perplexities(label, STAGES[stage]).loc[dataset]
        assert len(runs) == 3
        for shown, init in ((greedy, "greedy"), (oaem, "oaem")):
            mean, std = map(float, shown.split(" ± "))
            half = 0.5 * 10 ** -len(shown.rpartition(".")[2]) + 1e-9
            assert (mean, std) == (
                pytest.approx(runs[init].mean(), abs=half),
                pytest.approx(runs[init].std(ddof=1), abs=half),
            )
        # The same interval from scipy's paired test of the logarithms.
        logs = runs.map(math.log)
        interval = stats.ttest_rel(logs["greedy"], logs["oaem"]).confidence_interval(0.95)
        expected = [(logs["greedy"] - logs["oaem"]).mean(), interval.low, interval.high]
        shown_ratio = [float(number) for number in re.findall(r"[\d.]+", ratio)]
        assert shown_ratio == [pytest.approx(math.exp(value), abs=0.00051) for value in expected]
        assert better == f"{(runs.greedy > runs.oaem).sum()} of 3"


def test_what_the_text_says_in_words() -> None:
    for label, better in (("A", 0), ("B", 9), ("C", 9)):
        runs = perplexities(label, "pre_pv")
        assert (runs.oaem < runs.greedy).sum() == better
    for label in ("B", "C"):
        for stage in STAGES.values():
            ratio = perplexities(label, stage).eval("greedy / oaem")
            assert (ratio["boolq"] > ratio["wikihow"]).all(), "larger with each seed"
    assert perplexities("A", "post_pv").empty, "A was not PV-tuned"
    for label in ("B", "C"):
        for stage in ("post_pv_validation", "post_pv_last"):
            pd.testing.assert_frame_equal(perplexities(label, stage), perplexities(label, "post_pv"))
    table = pd.read_csv(PAPER / "tables/table6.csv").set_index("init")["wiki2"]
    assert f"{table['Baseline']:.2f} against {table['+ OA-EM']:.2f}" in PAGE.read_text(encoding="utf-8")


def test_no_measured_number_is_written_by_hand() -> None:
    """Decimals outside calls: what the paper prints, the quantile and its consequence, the paper's own number."""
    template = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    assert set(re.findall(r"\d+\.\d+", template)) == {"2604.08118", "4.30", "2.5", "9.52", "8.87"}
