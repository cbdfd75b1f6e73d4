"""What docs/findings.md says in words of the sweep, of block tuning and of runs made twice, recomputed another way."""

from __future__ import annotations

import math
import re

import pandas as pd
from scipy import stats

from oaem.config.geometry import Geometry
from oaem.presentation.findings import REPEATED, SMALL_SWEEP, SWEEP, TEXTS, TWICE, WITHOUT_BLOCK_TUNING
from tests.unit.presentation.findings_page import (
    ARCHIVE,
    LAYERS,
    PAGE,
    RATIO,
    STAGES,
    bullet,
    check_numbers,
    check_pair,
    check_ratio,
    ends,
    perplexities,
)
from tests.unit.presentation.oracles import first_coefficient


def test_how_the_ratio_grows_with_rho_is_the_archives() -> None:
    """By numpy's least squares with a column a seed; the second three without the geometry of heavy codebooks."""
    *lines, _ = lines_of_the_slope()
    answer = bullet("The order of the three cases is the paper's")
    for words, stage in zip(lines, STAGES.values(), strict=True):
        ratios = re.findall(RATIO, words)
        whole = [steepness([case.label for case in SWEEP], stage, text) for text in TEXTS]
        light = [steepness([case.label for case in SWEEP[1:]], stage, text) for text in TEXTS]
        for ratio, expected in zip(ratios, [*whole, *light], strict=True):
            check_numbers(ratio, expected)
        assert all(low > 1 for _, low, _ in whole), "the ratio grows with rho, and the answer says so"
        assert (light[2][1] > 1) == (stage == "pre_pv"), "after PV-tuning it is undecided without that geometry"
        assert {ratios[2], ratios[5]} <= set(re.findall(RATIO, answer))
        for text in ("boolq", "wikihow"):
            assert by_means(stage, text) in PAGE.read_text(encoding="utf-8").replace("\n  ", " ")


def test_what_small_budgets_do_to_the_ratio_is_the_archives() -> None:
    small = [case.label for case in SMALL_SWEEP]
    slopes = [steepness(small, "pre_pv", text) for text in TEXTS]
    shown = re.findall(RATIO, lines_of_the_slope()[-1])
    for ratio, expected in zip(shown, slopes, strict=True):
        check_numbers(ratio, expected)
        assert expected[1] < 1 < expected[2], "no growth is seen"
    assert shown[2] in bullet("The order of the three cases is the paper's")
    same = steepness([case.label for case in SWEEP[1:]], "pre_pv", "boolq")
    assert slopes[2][2] > same[1], "the two intervals overlap"
    words = re.findall(
        RATIO, bullet("With small budgets OA-EM helps more at each of these rho, and no growth with rho is seen")
    )
    check_numbers(words[2], same)
    for few, full in zip(small, (case.label for case in SWEEP[1:]), strict=True):
        ratios = {
            key: perplexities(each, "pre_pv").dropna().loc["boolq"].eval("greedy / oaem")
            for key, each in (("greedy", few), ("oaem", full))
        }
        assert stats.gmean(ratios["greedy"]) > stats.gmean(ratios["oaem"]), "OA-EM helps more with small budgets"
        if few == small[0]:
            check_ratio(pd.DataFrame(ratios).dropna(), words[3])


def test_every_row_of_the_small_sweep_is_the_archives() -> None:
    found = re.findall(r"^\| (\d+ bit over \d+ \(small\)) \|" + r" ([^|]*?) \|" * 6 + "$", PAGE.read_text(), re.M)
    assert [row[:2] for row in found] == [(case.label, text) for case in SMALL_SWEEP for text in TEXTS.values()]
    for label, text, seeds, *cells, better in found:
        runs = perplexities(label, "pre_pv").dropna().loc[next(key for key, name in TEXTS.items() if name == text)]
        assert seeds == ", ".join(str(int(seed)) for seed in runs.index)
        check_pair(runs, *cells)
        assert better == f"{(runs.greedy > runs.oaem).sum()} of {len(runs)}"


def lines_of_the_slope() -> list[str]:
    """One a stage, on three texts of all geometries, then without that one; the last of the small sweep."""
    line = r"\*\*Ten times the mean rho [^*]*\*\* \(\d+ pairs\)(?:;\n[^\n]*|\.)"
    return re.findall(line, PAGE.read_text(encoding="utf-8"))


def by_means(stage: str, text: str) -> str:
    """The slope through the mean logarithms of the geometries, by scipy's regression, as the page prints it."""
    logs = [perplexities(c.label, stage).dropna().loc[text].eval("greedy / oaem").map(math.log).mean() for c in SWEEP]
    line = stats.linregress([math.log10(mean_rho(case.label)) for case in SWEEP], logs)
    reach = stats.t.ppf(0.975, len(SWEEP) - 2) * line.stderr
    mean, low, high = (math.exp(each) for each in (line.slope, line.slope - reach, line.slope + reach))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def steepness(labels: list[str], stage: str, text: str) -> tuple[float, float, float]:
    """How many times as large the ratio is at ten times the rho, with the ends of its interval."""
    pairs = {label: perplexities(label, stage).dropna().loc[text].eval("greedy / oaem") for label in labels}
    frame = pd.DataFrame(
        [
            (math.log10(mean_rho(label)), seed, math.log(each))
            for label in labels
            for seed, each in pairs[label].items()
        ],
        columns=["rho", "seed", "log"],
    )
    design = pd.get_dummies(frame[["rho", "seed"]], columns=["seed"]).to_numpy(float)
    slope, low, high = first_coefficient(design, frame["log"].to_numpy())
    return math.exp(slope), math.exp(low), math.exp(high)


def mean_rho(label: str) -> float:
    geometry = Geometry.parse(next(case.geometry for case in (*SWEEP, *SMALL_SWEEP) if case.label == label))
    return sum(geometry.rho(*shape) for shape in LAYERS) / len(LAYERS)


def test_what_is_said_of_runs_without_block_tuning_is_the_archives() -> None:
    words = bullet("Does block tuning repair it?")
    ratios = re.findall(RATIO, words)
    without, tuned = (perplexities(label, "pre_pv") for label in (WITHOUT_BLOCK_TUNING.label, REPEATED.label))
    for init, ratio in zip(("greedy", "oaem"), ratios[:2], strict=True):
        check_ratio(pd.DataFrame({"greedy": without.loc["boolq"][init], "oaem": tuned.loc["boolq"][init]}), ratio)
        assert ends(ratio)[0] > 1, "both need it"
    check_ratio(without.loc["boolq"], ratios[2])
    check_ratio(tuned.loc["boolq"], ratios[3])
    change = {name: rows.loc["boolq"].eval("greedy / oaem") for name, rows in (("greedy", without), ("oaem", tuned))}
    check_ratio(pd.DataFrame(change), ratios[4])
    check_ratio(without.loc["wikihow"], ratios[5])
    check_ratio(tuned.loc["wikihow"], ratios[6])
    low, high = ends(ratios[4])
    assert low < 1 < high, "or it would not be undecided"
    without, again = (
        perplexities(label, "post_pv").loc["boolq"] for label in (WITHOUT_BLOCK_TUNING.label, REPEATED.label)
    )
    for init, ratio, before in zip(("greedy", "oaem"), ratios[7:9], ratios[:2], strict=True):
        check_ratio(pd.DataFrame({"greedy": without[init], "oaem": again[init]}), ratio)
        left, lost = (math.log(float(each.split()[0])) for each in (ratio, before))
        assert left < lost / 2, "PV-tuning makes up for most of it"
    check_ratio(without, ratios[9])
    check_ratio(again, ratios[10])


def test_runs_made_twice_are_those_of_the_archives() -> None:
    later = {folder.name for folder in ARCHIVE.iterdir() if (ARCHIVE / f"{folder.name}b").is_dir()}
    second = {f"{name}b": name for name in later if not name.startswith("three-models-")}  # other runs, all of them
    assert {name: first for first, name in TWICE} == second
    found = {}
    for stage in STAGES.values():
        pairs = [[values_by_place(name, stage) for name in names] for names in TWICE]
        both = [(one, other, place) for one, other in pairs for place in one.keys() & other.keys()]
        assert all(one[place] == other[place] for one, other, place in both), "or it would not be the same draw"
        found[stage] = len(both)
    before, after = (found[stage] for stage in STAGES.values())
    text = bullet("Made again")
    assert f"of {before // 3} runs that were quantised twice, {before} of {before} perplexities" in text
    assert f"and of {after // 3} that were tuned twice {after} of {after} after it." in text
    assert after > 0
    manifests = [(ARCHIVE / name / "manifests.json").read_text(encoding="utf-8") for names in TWICE for name in names]
    devices = {device for each in manifests for device in re.findall(r'"device": "(.*?)"', each)}
    assert devices == {"NVIDIA H200"}, "on another card of the same kind"


def values_by_place(name: str, at: str) -> dict[tuple[object, ...], float]:
    """Perplexities of quantised models at a stage by all that tells them apart."""
    rows = pd.read_csv(ARCHIVE / name / "metrics.csv")
    rows = rows[(rows.metric == "perplexity") & (rows.stage == at)]
    places = rows[["geometry", "init", "beam_width", "max_epochs", "seed", "stage", "dataset"]]
    return dict(zip(places.itertuples(index=False, name=None), rows["value"], strict=True))
