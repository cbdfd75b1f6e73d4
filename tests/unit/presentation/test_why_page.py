"""The page's section "Why": its numbers and what it says in words, recomputed from the published archive."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from oaem.config.schema import load
from oaem.presentation.findings import TEXTS, UNTUNED, page
from oaem.presentation.why import CASES, LINEARS, OTHER, REPLACED, UNQUANTISED, Why
from tests.unit.presentation.findings_page import ARCHIVE, PAGE, RATIO, TEMPLATE, check_mean, close, of_kind
from tests.unit.presentation.paper_metrics import ROOT

CASE = CASES[0]
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
FULL = ("B", "B without block tuning")  # the paper's budgets


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


@pytest.mark.parametrize("label", SHOWN)
def test_seeds_are_the_archives(label: str) -> None:
    ((*shown,),) = re.findall(rf"^\| {label} \|" + r" ([^|]*?) \|" * 7 + "$", section(), re.M)
    frame = table("exchange", label)
    expected = [
        untouched("boolq", label).dropna().index,
        table("directions", label)["seed"].unique(),
        frame[frame["part"] == "block 0"]["seed"].unique(),
        frame[frame["part"] == "size"]["seed"].unique(),
    ]
    assert shown[2:6] == [", ".join(str(int(seed)) for seed in sorted(seeds)) for seeds in expected]
    newest = max(path.name for path in ARCHIVE.glob(next(case.archives for case in CASES if case.label == label)))
    assert shown[6] == f"`archive/{newest}`"


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
        assert f"{before} {share(init, dataset):.0f} %" in text
    check(re.findall(r"greedy's error in the other 99 % of directions is ([^a-z]*?) times", text)[0], resized("D"))


@pytest.mark.parametrize("label", FULL)
def test_what_the_text_says_of_single_layers(label: str) -> None:
    words = said(label, "no block and no kind of linear closes half of the gap")
    parts = [
        part for part in table("exchange", label)["part"].unique() if part.startswith(("block ", "self_attn.", "mlp."))
    ]
    ranges, ratios = re.findall(r"([\d.]+) to ([\d.]+)", words), re.findall(RATIO, words)
    assert (len(parts), len(ranges), len(ratios)) == (37, 4, 3)
    for place, init in enumerate(INITS):
        check(ratios[2 * place], changes(init, "everything", OTHER, "boolq", label))
        for start, group in ((0, "block "), (1, "_proj")):
            moved = pd.concat([changes(init, part, OTHER, "boolq", label) for part in parts if group in part])
            low, high = ranges[2 * place + start]
            assert close(low, moved.min())
            assert close(high, moved.max())
        rows = table("directions", label).query("init == @init")["error_share_few_rows"].mean()
        assert re.findall(r"has (\d+) %|, (\d+) % with", words)[place][place] == f"{100 * rows:.0f}"
        shares = {part: share(init, "boolq", label, part) for part in parts}
        best = max(shares, key=shares.__getitem__)
        named = best if best.startswith("block") else f"{best[-6]} of all blocks"
        if init == "greedy":
            assert f"closes most is {named}, {ratios[1]} times or {shares[best]:.0f} % of the gap" in words
            check(ratios[1], changes(init, best, OTHER, "boolq", label))
            assert shares[best] < 50, "none closes half of it"
        else:
            assert f"there {named} opens {shares[best]:.0f} %" in words


@pytest.mark.parametrize("label", FULL)
def test_what_the_text_says_of_directions(label: str) -> None:
    words = said(label, "errors differ in few directions, and taking them out does not narrow the gap")
    gap = untouched("boolq", label).eval("greedy / oaem")
    few, rest = (
        [changes(init, part, UNQUANTISED, "boolq", label) for init in INITS]
        for part in ("few directions", "other directions")
    )
    without, alone = (gap * greedy / oaem for greedy, oaem in (few, rest))
    errors = [layer_errors(f"relative_error_{each}_directions", "all", label) for each in ("few", "other")]
    measured = [each.eval("greedy / oaem") for each in errors]
    for shown, ratios in zip(re.findall(RATIO, words), [*measured, without, gap, *few, *rest, alone], strict=True):
        check(shown, ratios)
    assert stats.gmean(without) > stats.gmean(gap), "no narrower"
    assert all(stats.gmean(each) > 1 for each in few), "better with neither"
    low, high = stats.ttest_1samp(measured[1].map(math.log), 0).confidence_interval(0.95)
    assert low < 0 < high, "in the others they do not differ"
    for init, ratios in zip(INITS, rest, strict=True):
        damage = untouched("boolq", label)[init].map(math.log) - math.log(
            Why(ARCHIVE).inquiries[label].original("boolq")
        )
        assert (-ratios.map(math.log) > 0.9 * damage).all(), "nearly all damage"


@pytest.mark.parametrize("label", FULL)
def test_what_the_text_says_of_size(label: str) -> None:
    words = said(label, "what size makes is not told")
    pairs = table("directions", label).pivot(index=["seed", "block", "linear"], columns="init", values="relative_error")
    assert f"in {(pairs['oaem'] < pairs['greedy']).sum()} of {len(pairs)} layers" in words
    columns = ("relative_error", "walk", "relative_error_other_directions")
    size, walk, others = (layer_errors(column, "all", label).eval("greedy / oaem") for column in columns)
    for shown, ratios in zip(re.findall(RATIO, words), (size, walk, resized(label), others), strict=True):
        check(shown, ratios)
    assert re.findall(r"(\d+) %", words) == [
        f"{share('greedy', text, label):.0f}" for text in ("boolq", "lambada", "wikihow")
    ]
    assert (resized(label) < 0.99).all(), "shrinking acts where they did not differ"


def said(label: str, opening: str) -> str:
    """A bullet's words after its bold opening, which begins with the case."""
    text = " ".join(section().partition("**What it says of the paper's budgets**")[2].split())
    return text.partition(f"**{label}: {opening}**")[2].partition(" - **")[0].partition(" **So D's answer")[0]


def test_what_the_text_says_of_them_together() -> None:
    assert (
        "**So D's answer, layers that are nearer in most directions, is not found at the paper's budgets.**"
        in section()
    )
    others = {
        label: layer_errors("relative_error_other_directions", "all", label).eval("greedy / oaem")
        for label in ("D", *FULL)
    }
    assert (others["D"] > 1.1).all(), "nearer in most directions"
    assert all((others[label] < 1.05).all() for label in FULL), "not found at the paper's budgets"
    tuned, bare = (layer_errors("relative_error", "all", label).eval("greedy / oaem") for label in FULL)
    assert ((tuned > 1) & (bare > 1)).all(), "nearer to the model's there, too"
    assert (tuned < 1.02).all(), "with block tuning the sizes hardly differ"


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
        assert share(init) > 50, "most of the gap is size"
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
    """A case without layers compared: with them its tables and sentences appear, and it is not listed as not run."""
    for archive in ARCHIVE.iterdir():
        if archive.is_dir() and archive.name != UNTUNED:
            (tmp_path / archive.name).symlink_to(archive)
    (tmp_path / UNTUNED).mkdir()
    shutil.copy(ARCHIVE / UNTUNED / "metrics.csv", tmp_path / UNTUNED)
    without, whole = page(TEMPLATE, tmp_path), PAGE.read_text(encoding="utf-8")
    lacking = 'directions of errors, blocks and kinds exchanged ("Why") in B without block tuning.'
    assert lacking in " ".join(without.split())
    assert lacking not in " ".join(whole.split())
    for sign in ("| B without block tuning, perplexity |", "**B without block tuning: what size makes is not told**"):
        assert sign in whole
        assert sign not in without
    assert "**B: what size makes is not told**" in without
