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
from tests.unit.presentation.findings_page import ARCHIVE, PAGE, TEMPLATE, check_mean, close
from tests.unit.presentation.paper_metrics import ROOT
from tests.unit.presentation.why_page import (
    INITS,
    changes,
    check,
    layer_errors,
    resized,
    section,
    share,
    table,
    untouched,
)

CASE = CASES[0]


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
