"""The page's section "Why": its numbers and what it says in words, recomputed from the published archive."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from oaem.config.schema import load
from oaem.presentation.findings import TEXTS, page
from oaem.presentation.why import CASES, LINEARS, OTHER, REPLACED, UNQUANTISED, Why
from tests.unit.presentation.findings_page import PAGE, TEMPLATE, check_mean, close
from tests.unit.presentation.paper_metrics import ROOT

ARCHIVE = ROOT / "archive"
CASE = CASES[0]
INITS = ("greedy", "oaem")


def table(name: str, label: str = "D") -> pd.DataFrame:
    """The rows of a case, from all its archives."""
    case = next(case for case in CASES if case.label == label)
    found = pd.concat([pd.read_csv(folder / f"{name}.csv") for folder in sorted(ARCHIVE.glob(case.archives))])
    key = [
        column
        for column in found
        if column in {"init", "seed", "stage", "dataset", "metric", "part", "from", "block", "linear"}
    ]
    assert not found.duplicated(["geometry", *key]).any(), "each seed is in one archive"
    return found[(found.geometry == case.geometry) & (found.beam_width == case.search[0])]


def untouched(text: str, label: str = "D") -> pd.DataFrame:
    """Perplexity before PV-tuning: rows the seeds, columns the initialisations."""
    rows = table("metrics", label).query("stage == 'pre_pv' and metric == 'perplexity' and dataset == @text")
    return rows.pivot(index="seed", columns="init", values="value")


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


def cells(label: str, first: str, count: int) -> list[tuple[str, ...]]:
    """The rows with this first cell in the tables of a case."""
    own = section().partition(f"| {label}, perplexity |")[2].partition(", perplexity |")[0]
    return re.findall(rf"^\| ({first}) \|" + r" ([^|]*?) \|" * count + "$", own, re.M)


SHOWN = Why(ARCHIVE).shown()


@pytest.mark.parametrize("label", SHOWN)
def test_perplexities_are_the_archives(label: str) -> None:
    rows = {name: shown for name, *shown in cells(label, r"greedy|OA-EM|greedy / OA-EM \[95 %\]", 3)}
    assert len(rows) == 3
    for index, text in enumerate(TEXTS):
        runs = untouched(text, label).dropna()
        check_mean(rows["greedy"][index], runs["greedy"])
        check_mean(rows["OA-EM"][index], runs["oaem"])
        check(rows["greedy / OA-EM [95 %]"][index], runs["greedy"] / runs["oaem"])


def layer_errors(column: str, linear: str, label: str = "D") -> pd.DataFrame:
    """Means over blocks: rows the seeds, columns the initialisations."""
    if column == "walk":
        rows, name, value = table("metrics", label).query("metric == 'relative_error'"), "dataset", "value"
    else:
        rows, name, value = table("directions", label), "linear", column
    if linear != "all":
        rows = rows[rows[name].str.endswith(f".{linear}_proj")]
    return rows.pivot_table(index="seed", columns="init", values=value, aggfunc="mean")


@pytest.mark.parametrize("label", SHOWN)
def test_layer_errors_are_the_archives(label: str) -> None:
    rows = cells(label, "|".join((*LINEARS, "all")), 8)
    assert [row[0] for row in rows] == [*LINEARS, "all"]
    for linear, *shown in rows:
        for start, column in ((0, "walk"), (3, "relative_error")):
            errors = layer_errors(column, linear, label)
            assert close(shown[start], errors["greedy"].mean())
            assert close(shown[start + 1], errors["oaem"].mean())
            check(shown[start + 2], errors["greedy"] / errors["oaem"])
        for place, column in ((6, "relative_error_few_directions"), (7, "relative_error_other_directions")):
            errors = layer_errors(column, linear, label)
            check(shown[place], errors["greedy"] / errors["oaem"])


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


PLACES = [(text, init) for text in ("boolq", "lambada", "wikihow") for init in INITS]


@pytest.mark.parametrize("label", SHOWN)
def test_replacements_are_the_archives(label: str) -> None:
    rows = cells(label, "everything|size of the error|error in the .*?", 7)
    assert [row[0] for row in rows] == [what for what, *_ in REPLACED]
    for (_, _, *shown), (_, _, part, giver) in zip(rows, REPLACED, strict=True):
        for each, (text, init) in zip(shown, PLACES, strict=True):
            check(each, changes(init, part, giver, text, label))
    parts = [part for part in table("exchange", label)["part"].unique() if part.startswith("block ") or "_proj" in part]
    assert len(parts) == 30 + 7
    for what, _, *shown in cells(label, "one block|one kind of linear, in all blocks", 7):
        group = [part for part in parts if part.startswith("block ") == (what == "one block")]
        for each, (text, init) in zip(shown, PLACES, strict=True):
            found = pd.concat([changes(init, part, OTHER, text, label) for part in group])
            low, high = each.split(" to ")
            assert close(low, found.min())
            assert close(high, found.max())


def share(init: str, text: str = "boolq", label: str = "D") -> pd.Series:
    """Of the logarithmic gap on a text, what errors of the other's size make; by seed, in per cent."""
    size, whole = (changes(init, part, OTHER, text, label).map(math.log) for part in ("size", "everything"))
    return (100 * size / whole).dropna()


def test_seeds_are_the_archives() -> None:
    ((*shown,),) = re.findall(r"^\| D \|" + r" ([^|]*?) \|" * 7 + "$", section(), re.M)
    frame = table("exchange")
    expected = [
        untouched("boolq").dropna().index,
        table("directions")["seed"].unique(),
        frame[frame["part"] == "block 0"]["seed"].unique(),
        frame[frame["part"] == "size"]["seed"].unique(),
    ]
    assert shown[2:6] == [", ".join(str(int(seed)) for seed in sorted(seeds)) for seeds in expected]
    assert shown[6] == ", ".join(f"`archive/{folder.name}`" for folder in sorted(ARCHIVE.glob(CASE.archives)))


def test_what_the_text_says_in_numbers() -> None:
    text = " ".join(section().split())
    rows = table("directions").groupby("init")["error_share_few_rows"].mean()
    assert f"holds {100 * rows['greedy']:.0f} % of a layer's error with greedy, {100 * rows['oaem']:.0f} % with" in text
    energy = table("directions").groupby("linear")["input_share_first_direction"].mean()
    assert f"alone holds {100 * energy.min():.0f} to {100 * energy.max():.0f} % of their energy" in text
    without = [changes(init, "few directions", UNQUANTISED, "boolq") for init in INITS]
    gap = re.search(
        r"without any error there the far ratio greedy / OA-EM is ([^a-z]*?), no narrower than with it", text
    )
    assert gap is not None
    runs = untouched("boolq")
    left = (runs["greedy"] * without[0]) / (runs["oaem"] * without[1])
    check(gap[1], left)
    assert stats.gmean(left.dropna()) > stats.gmean(runs["greedy"] / runs["oaem"]), "no narrower"
    pairs = table("directions").pivot(index=["seed", "block", "linear"], columns="init", values="relative_error")
    assert f"lower with OA-EM in {(pairs['oaem'] < pairs['greedy']).sum()} of {len(pairs)} layers" in text
    places = (("greedy", "boolq", "close"), ("oaem", "boolq", "open"))
    places += (("greedy", "wikihow", "in-domain"), ("oaem", "wikihow", "and"))
    for init, dataset, before in places:
        values = share(init, dataset)
        shown = f"{values.mean():.0f} %" + (f" ({values.min():.0f} to {values.max():.0f})" if len(values) > 1 else "")
        assert f"{before} {shown}" in text


def test_what_the_text_says_of_the_papers_budgets() -> None:
    text = " ".join(section().partition("- **The paper's budgets (B)**")[2].partition("\n- **")[0].split())
    seeds = sorted(int(seed) for seed in table("exchange", "B")["seed"].unique())
    assert f"of seeds {', '.join(map(str, seeds))} errors were exchanged" in text
    for (init, dataset), before in zip(
        ((init, dataset) for init in INITS for dataset in ("boolq", "wikihow")),
        ("closes", "far gap and", "opens", "and"),
        strict=True,
    ):
        values = share(init, dataset, "B")
        assert f"{before} {values.mean():.0f} % ({values.min():.0f} to {values.max():.0f})" in text
    left = [changes(init, "other directions", UNQUANTISED, "boolq", "B") for init in INITS]
    for shown, ratios in zip(re.findall(r"[\d.]+ \[[\d., ]+\]", text), left, strict=True):
        check(shown, ratios)
    original = table("metrics", "B").query("dataset == 'boolq' and stage == 'pre_pv' and metric == 'perplexity'")
    for init, ratios in zip(INITS, left, strict=True):
        runs = original[original.init == init].set_index("seed")["value"]
        whole = runs.map(math.log) - math.log(Why(ARCHIVE).inquiries["B"].original("boolq"))
        assert ((-ratios.map(math.log)) > 0.9 * whole.reindex(ratios.index)).all(), "nearly all damage"


def test_what_the_text_says_in_words() -> None:
    for init in INITS:
        whole = changes(init, "everything", OTHER, "boolq").map(math.log)
        for block in range(30):
            moved = changes(init, f"block {block}", OTHER, "boolq").map(math.log)
            assert (moved / whole).max() < 0.5, "no block carries it"
    few, rest = (
        layer_errors(f"relative_error_{each}_directions", linear).eval("greedy / oaem")
        for each in ("few", "other")
        for linear in ["all"]
    )
    assert (few > rest).all(), "errors differ most in few directions"
    assert (changes("greedy", "few directions", OTHER, "boolq") > 1).all(), "worse, not better"
    for init in INITS:
        assert (changes(init, "other directions", UNQUANTISED, "boolq") < 0.1).all(), "nearly all of the damage"
        assert (share(init) > 50).all(), "most of the gap is size"
    assert (untouched("lambada").eval("greedy / oaem") < 1.1).sum() == 1, "one seed has hardly any gap"
    kinds = [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
    kinds += [f"self_attn.{kind}_proj" for kind in "qkvo"]
    for init in INITS:
        assert any((changes(init, kind, OTHER, "boolq") > 1).all() for kind in kinds), "harm in either direction"
    evidence = pd.read_csv(ARCHIVE / "evidence-2026-11-25/metrics.csv").query("geometry == '2bpp-2x8g8'")
    means = evidence[evidence.metric == "relative_error"].groupby("init")["value"].mean()
    assert means["oaem"] > means["greedy"], "there errors on a run's own inputs are higher with OA-EM"


def test_the_setting_is_the_configurations() -> None:
    config = load(ROOT / "config/config.yaml", ROOT / "config/inquiry.yaml")
    text = " ".join(section().split())
    quantization = config.quantization
    assert f"{quantization.calibration.windows} × {quantization.calibration.window} calibration tokens" in text
    assert f"k-means of {quantization.kmeans.iterations} iterations" in text
    assert quantization.codebooks.solver == "cg"
    assert quantization.codebooks.steps == 5
    assert quantization.block_tuning.epochs == 0
    assert {each.text.windows for each in config.evaluation.perplexity.values()} == {4}
    assert {run.geometry.name for run in config.runs()} == {CASE.geometry}
    assert {(run.beam_width, run.max_epochs) for run in config.runs()} == {CASE.search}


def test_the_page_grows_with_an_archive(tmp_path: Path) -> None:
    """A case without one: with it its tables appear, its sentence changes, it is no more listed as not run."""
    for archive in ARCHIVE.iterdir():
        if archive.is_dir():
            (tmp_path / archive.name).symlink_to(archive)
    case = next(case for case in CASES if case.label == "B")
    for name in ("metrics", "directions", "exchange"):
        frame = table(name)
        frame["geometry"], frame["beam_width"], frame["max_epochs"] = case.geometry, *case.search
        (tmp_path / "ablation-nothing-2026-12-01").mkdir(exist_ok=True)
        frame.to_csv(tmp_path / "ablation-nothing-2026-12-01" / f"{name}.csv", index=False)
    text = page(TEMPLATE, tmp_path)
    assert "| B, perplexity |" in text
    assert "- **The paper's budgets (B)**: greedy's error on the model's inputs is 1." in text
    lacking = 'directions of errors, blocks and kinds exchanged ("Why") in '
    assert f"{lacking}B and B without block tuning." in PAGE.read_text(encoding="utf-8")
    assert f"{lacking}B without block tuning." in text
