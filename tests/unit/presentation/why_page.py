"""Section "Why" of docs/findings-details.md as its tests read it, and what the archives say of a case."""

from __future__ import annotations

import math
import re

import pandas as pd
from scipy import stats

from oaem.presentation.why import CASES, OTHER
from tests.unit.presentation.findings_page import PAGE, close, of_kind

INITS = ("greedy", "oaem")


def table(name: str, label: str = "D") -> pd.DataFrame:
    """The rows of a case: of a run what the newest of its archives has."""
    case = next(case for case in CASES if case.label == label)
    found = of_kind(case.archives, name)
    return found[(found.geometry == case.geometry) & (found.beam_width == case.search[0])]


def untouched(text: str, label: str = "D") -> pd.DataFrame:
    """Perplexity before PV-tuning: rows the seeds, columns the initialisations."""
    rows = table("metrics", label).query("stage == 'pre_pv' and metric == 'perplexity' and dataset == @text")
    return rows.pivot(index="seed", columns="init", values="value")


def original(text: str, label: str) -> float:
    """Perplexity of the unquantised model."""
    archives = next(case.archives for case in CASES if case.label == label)
    rows = of_kind(archives, "metrics").query("stage == 'fp16' and metric == 'perplexity' and dataset == @text")
    (value,) = set(rows["value"])
    return float(value)


def check(shown: str, ratios: pd.Series) -> None:
    """A geometric mean over seeds and, of several, its interval by scipy's test of the logarithms."""
    logs = ratios.dropna().map(math.log)
    expected = [logs.mean()]
    if len(logs) > 1:
        expected += list(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
    numbers = re.findall(r"[\d.]+", shown)
    assert all(close(each, math.exp(value)) for each, value in zip(numbers, expected, strict=True)), (shown, expected)


def section() -> str:
    return PAGE.read_text(encoding="utf-8").partition("## Why\n")[2].partition("\n## ")[0]


def layer_errors(column: str, linear: str, label: str = "D") -> pd.DataFrame:
    """Means over blocks: rows the seeds, columns the initialisations."""
    if column == "walk":
        rows, name, value = table("metrics", label).query("metric == 'relative_error'"), "dataset", "value"
    else:
        rows, name, value = table("directions", label), "linear", column
    if linear != "all":
        rows = rows[rows[name].str.endswith(f".{linear}_proj")]
    return rows.pivot_table(index="seed", columns="init", values=value, aggfunc="mean")


def changes(init: str, part: str, source: str, text: str, label: str = "D") -> pd.Series:
    """Over the untouched model, by seed."""
    runs, other = untouched(text, label), next(each for each in INITS if each != init)
    if part == "everything":
        return runs[other] / runs[init]
    giver = other if source == OTHER else source
    frame = table("exchange", label)
    rows = frame[(frame.init == init) & (frame.part == part) & (frame["from"] == giver) & (frame.dataset == text)]
    assert len(rows)
    return (rows.set_index("seed")["perplexity"] / runs[init]).dropna()


def share(init: str, text: str = "boolq", label: str = "D", part: str = "size") -> float:
    """Of the mean logarithmic gap on a text, what a part of the other's makes, in per cent."""
    moved, whole = (changes(init, each, OTHER, text, label).map(math.log) for each in (part, "everything"))
    return float(100 * moved.mean() / whole.reindex(moved.index).mean())


def resized(label: str) -> pd.Series:
    """Greedy's error outside the first hundredth over OA-EM's, had greedy's layers errors of OA-EM's size; by seed."""
    rows = table("directions", label)
    pairs = rows[rows.init == "greedy"].merge(rows[rows.init == "oaem"], on=["seed", "block", "linear"])
    column = "relative_error_other_directions"
    pairs["shrunk"] = pairs[f"{column}_x"] * pairs["relative_error_y"] / pairs["relative_error_x"]
    means = pairs.groupby("seed")[["shrunk", f"{column}_y"]].mean()
    return means["shrunk"] / means[f"{column}_y"]
