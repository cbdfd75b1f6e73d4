"""docs/ablations.md: what is committed is what the archives give, and its numbers are recomputed here another way."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from oaem.config.schema import Config
from oaem.config.schema import load as load_files
from oaem.errors import UserError
from oaem.presentation.ablations import EPOCHS, Line, gaps, lines, page, read_ablations
from oaem.presentation.findings import EVIDENCE, STAGES, TEXTS
from tests.unit.presentation.paper_metrics import ROOT

NAMES = sorted(path.stem for path in (ROOT / "config/ablations").glob("*.yaml"))
TEMPLATE = ROOT / "docs/ablations.md.j2"
GEOMETRY = "2bpp-2x8g8"
# What each may change of the evidence, beside its title, its grid and the tasks that nobody reads here.
CHANGED: dict[str, dict[str, Any]] = {
    "exact-codebooks": {"codebooks": {"solver": "cg"}},
    "exact-m-step": {},
    "less-text": {"calibration": {"windows": 32}},
    "model-targets": {"block_tuning": {"targets": "unquantized_model"}},
    "more-text": {"calibration": {"windows": None}},
    "no-block-tuning": {"block_tuning": {"epochs": 0}},
    "nothing": {},
    "original-inputs": {"inputs": "original"},
    "rounds-1": {"oaem": {"rounds": 1}},
    "rounds-10": {"oaem": {"rounds": 10}},
    "row-weights": {"kmeans": {"row_weights": "squared_scale"}, "oaem": {"row_weights": "squared_scale"}},
}
SMALL = sorted(path.stem for path in (ROOT / "config/ablations/small").glob("*.yaml"))
CHANGED_SMALL = CHANGED | {"more-text": {"calibration": {"windows": 48}}}


def evidence() -> pd.DataFrame:
    return pd.read_csv(ROOT / "archive" / EVIDENCE / "metrics.csv")


def config(name: str) -> Config:
    return load_files(ROOT / "config/evidence.yaml", ROOT / f"config/ablations/{name}.yaml")


def measured(name: str, factors: dict[int, float]) -> pd.DataFrame:
    """Invented measurements of an ablation: the evidence's perplexities times a factor a seed."""
    found = evidence()
    found = found[(found.geometry == GEOMETRY) & found.seed.isin(factors) & (found.metric == "perplexity")].copy()
    found["value"] *= found["seed"].map(factors)
    inits = {"oaem": next(run.init for run in config(name).runs() if run.init != "greedy"), "greedy": "greedy"}
    found["init"] = found["init"].map(inits)
    return found[found["init"].isin([run.init for run in config(name).runs()])]


def test_the_page_is_that_of_the_archive() -> None:
    text = (ROOT / "docs/ablations.md").read_text(encoding="utf-8")
    assert text == page(TEMPLATE, ROOT), "run python -m oaem.presentation.ablations"
    found = re.findall(r"^\| As in the evidence \| (greedy|OA-EM) \| (.*) \|$", text, re.M)
    assert [label for label, _ in found] == ["greedy", "OA-EM"]
    rows = evidence()
    rows = rows[(rows.geometry == GEOMETRY) & (rows.metric == "perplexity")].set_index(["init", "dataset", "stage"])
    for init, (_, shown) in zip(("greedy", "oaem"), found, strict=True):
        places = [(init, dataset, stage) for dataset in TEXTS for stage in STAGES]
        for place, cell in zip(places, shown.split(" | "), strict=True):
            values = rows.loc[place, "value"]
            assert len(values) == 3
            half = 0.5 * 10 ** -len(cell.rpartition(".")[2]) + 1e-9
            assert [float(number) for number in cell.split(" ± ")] == [
                pytest.approx(values.mean(), abs=half),
                pytest.approx(values.std(ddof=1), abs=half),
            ]


def test_what_is_said_in_short_is_in_the_tables() -> None:
    text = (ROOT / "docs/ablations.md").read_text(encoding="utf-8").partition("## At the demonstration's budgets")[0]
    parts = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    cell = re.compile(r"([\d.]+) \[([\d.]+), ([\d.]+)\]")
    rows = {
        name: {
            tuple(line.strip("| ").split(" | ")[:keys]): [tuple(map(float, each)) for each in cell.findall(line)]
            for line in parts[name].splitlines()
            if cell.search(line)
        }
        for name, keys in (("Over the evidence", 2), ("Greedy over OA-EM", 1))
    }
    changes, ahead = rows.values()
    baseline = ahead.pop(("As in the evidence",))
    shown = re.findall(r"^\| ([^|]+?) \| (greedy|OA-EM) \| (.*?) \| (.*?) ?\|$", parts["In short"], re.M)
    assert {(title, init) for title, init, *_ in shown} == changes.keys()
    assert {(title,) for title, _, _, gap in shown if gap} == ahead.keys()
    for title, init, change, gap in shown:
        check_intervals(change, changes[title, init])
        if gap:
            check_intervals(gap, ahead[title,])
    check_intervals(parts["In short"].partition("without a change ")[2].partition(")")[0], baseline)
    won = [each for cells in ahead.values() for each in cells]
    words = f"{sum(mean > 1 for mean, *_ in won)} of {len(won)} comparisons"
    assert f"is lower than greedy's in {words}, with" in parts["In short"]
    over = next(line for line in parts["In short"].splitlines() if words in line)
    check_intervals(over.partition("intervals: ")[2].partition(". ")[0], won)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"in {words}, each a text before or after PV-tuning, under ten changes" in readme
    above = re.findall(r"intervals: (\d+) above 1", over)[0]
    assert f"the interval leaves equality out in {above} of them" in readme
    assert len(ahead) == 10 + 1, "ten changes, and none made again"
    assert "**Not run:** exact-m-step after PV-tuning." in text
    assert f"is lower than greedy's in {words}, with every seed in {with_every_seed()};" in over


def with_every_seed() -> int:
    """In how many comparisons of the changes OA-EM is better with each, from the archives."""
    found, baseline = 0, evidence()
    for path in sorted((ROOT / "config/ablations").glob("*.yaml")):
        folders = sorted((ROOT / "archive").glob(f"ablation-{path.stem}-[0-9]*"))
        rows = pd.concat([pd.read_csv(folder / "metrics.csv") for folder in folders]).replace("oaem_exact", "oaem")
        greedy = rows if (rows["init"] == "greedy").any() else baseline
        key = ["stage", "dataset", "seed"]
        values = [
            each[(each.metric == "perplexity") & (each.geometry == GEOMETRY) & (each["init"] == init)]
            .groupby(key)["value"].last()
            for init, each in (("greedy", greedy), ("oaem", rows))
        ]  # fmt: skip
        ratios = (values[0] / values[1]).dropna()
        stages, texts = (ratios.index.get_level_values(level) for level in ("stage", "dataset"))
        ratios = ratios[stages.isin(STAGES) & texts.isin(TEXTS)]
        found += int((ratios > 1).groupby(["stage", "dataset"]).all().sum())
    return found


def check_intervals(words: str, cells: list[tuple[float, ...]]) -> None:
    """Where printed intervals lie; of one that ends at 1.000 what was rounded says it, and is not printed."""
    above, below, around = map(int, re.findall(r"(\d+) (?:above|below|around)", words))
    assert sum(low > 1 for _, low, _ in cells) <= above <= sum(low >= 1 for _, low, _ in cells)
    assert sum(high < 1 for *_, high in cells) <= below <= sum(high <= 1 for *_, high in cells)
    assert above + below + around == len(cells)


def test_no_measured_number_is_written_by_hand() -> None:
    template = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", TEMPLATE.read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"\d+\.\d+", template)


def assert_changes(changed: Config, plain: Config, changes: dict[str, Any], beside: set[str]) -> None:
    """`changed` is `plain` with `changes` of quantization, and what all ablations leave out."""
    one, other = (each.model_dump(mode="json") for each in (plain, changed))
    for group, change in changes.items():
        known = one["quantization"][group]
        one["quantization"][group] = known | change if isinstance(change, dict) else change
        assert one["quantization"][group] == other["quantization"][group]
    for each in (one, other):
        for key in beside | {"title", "grid"}:
            del each[key]
        del each["evaluation"]["downstream"]
    assert other == one


@pytest.mark.parametrize("name", SMALL)
def test_a_small_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    plain = load_files(ROOT / "config/config.yaml")
    changed = load_files(ROOT / "config/config.yaml", ROOT / f"config/ablations/small/{name}.yaml")
    assert_changes(changed, plain, CHANGED_SMALL[name], {"pv"})
    assert changed.pv is None
    places = {run.path.rpartition("/")[0].replace("oaem_exact", "oaem") for run in changed.runs()}
    assert places <= {run.path.rpartition("/")[0] for run in plain.runs()}
    assert {run.seed for run in changed.runs()} == {42, 43, 44}


@pytest.mark.parametrize("name", NAMES)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    assert_changes(config(name), load_files(ROOT / "config/evidence.yaml"), CHANGED[name], set())
    runs = config(name).runs()
    evidence_runs = {run.path for run in load_files(ROOT / "config/evidence.yaml").runs()}
    assert {run.path.replace("oaem_exact", "oaem") for run in runs} <= evidence_runs
    assert {run.seed for run in runs} == {42, 43, 44}
    only_oaem = name == "exact-m-step" or CHANGED[name].keys() == {"oaem"}
    assert ("greedy" not in {run.init for run in runs}) == only_oaem, "greedy is made anew where it can change"


def row(rows: list[Line], name: str, init: str) -> Line:
    return next(line for line in rows if (line.title, line.init) == (config(name).title, init))


@pytest.mark.parametrize("name", ["exact-m-step", "row-weights"])
def test_a_change_is_told_seed_by_seed(name: str) -> None:
    """By scipy's paired test of the logarithms; a run beyond the evidence's seeds has no partner."""
    factors = {42: 0.9, 43: 0.95, 44: 0.8}
    found = lines(evidence(), {name: (config(name), measured(name, factors))})
    interval = stats.ttest_1samp([math.log(factor) for factor in factors.values()], 0).confidence_interval(0.95)
    mean = stats.gmean(list(factors.values()))
    expected = f"{mean:.3f} [{math.exp(interval.low):.3f}, {math.exp(interval.high):.3f}]"
    line = row(found, name, "oaem")
    assert {line.change(stage, text) for stage in STAGES for text in TEXTS} == {expected}
    assert line.seeds == "42, 43, 44"
    before = evidence().query("geometry == @GEOMETRY and init == 'oaem' and stage == 'pre_pv' and dataset == 'boolq'")
    values = before["value"] * before["seed"].map(factors)
    assert line.perplexity("pre_pv", "boolq") == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    # Greedy over OA-EM: both changed alike in the one, OA-EM alone in the other.
    plain, changed = gaps(found)
    assert (changed.ratio("pre_pv", "boolq") == plain.ratio("pre_pv", "boolq")) == (name == "row-weights")


def test_what_was_run_in_part_is_shown_in_part() -> None:
    part = measured("row-weights", {43: 1.5, 44: 1.5})
    part = part[(part.stage == "pre_pv") & (part.init == "oaem") | (part.seed == 43)]
    found = lines(evidence(), {"row-weights": (config("row-weights"), part)})
    greedy, oaem = (row(found, "row-weights", init) for init in ("greedy", "oaem"))
    assert (greedy.seeds, oaem.seeds) == ("43", "43, 44")
    assert greedy.change("post_pv", "boolq") == "1.500", "one seed has no interval"
    assert oaem.change("pre_pv", "boolq") == "1.500 [1.500, 1.500]"
    nothing = lines(evidence(), {"rounds-1": (config("rounds-1"), None)})
    assert not row(nothing, "rounds-1", "oaem").measured
    assert row(nothing, "rounds-1", "oaem").change("pre_pv", "boolq") == "not run"
    assert [gap.title for gap in gaps(nothing)] == ["As in the evidence"]


def test_another_epoch_comes_from_the_evidence_itself() -> None:
    changed = evidence()
    rows = (changed.stage == "post_pv_validation") & (changed.dataset == "boolq") & (changed.init == "oaem")
    changed.loc[rows, "value"] *= 2
    found = lines(changed, {"rounds-1": (config("rounds-1"), None)})
    line = next(each for each in found if each.title == EPOCHS["post_pv_validation"] and each.init == "oaem")
    assert line.change("post_pv", "boolq") == "2.000 [2.000, 2.000]"
    assert line.change("post_pv", "wikihow") == "1.000 [1.000, 1.000]"
    assert line.change("pre_pv", "boolq") == line.perplexity("pre_pv", "boolq") == "the same"


def test_archives_of_a_name_are_joined_and_the_newer_counts(tmp_path: Path) -> None:
    """And none whose name only begins like it."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "archive" / EVIDENCE, tmp_path / "archive" / EVIDENCE)
    for date, factors in (("2026-12-01", {42: 3.0, 43: 2.0}), ("2026-12-09", {42: 2.0, 44: 2.0})):
        folder = tmp_path / f"archive/ablation-rounds-1-{date}"
        folder.mkdir()
        measured("rounds-1", factors).to_csv(folder / "metrics.csv", index=False)
    found = read_ablations(tmp_path)
    assert [name for name, (_, rows) in found.items() if rows is not None] == ["rounds-1"]
    assert row(lines(evidence(), found), "rounds-1", "oaem").change("pre_pv", "boolq") == "2.000 [2.000, 2.000]"
    text = page(TEMPLATE, tmp_path)
    assert "| OA-EM of one round | OA-EM | 42, 43, 44 |" in text and "rounds-1," not in text and "rounds-10" in text


def test_changes_at_small_budgets_are_told_from_runs_that_nothing_changed(tmp_path: Path) -> None:
    """Their section is there once the latter are; far perplexity 100 and 50, OA-EM's with one round twice as high."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "archive" / EVIDENCE, tmp_path / "archive" / EVIDENCE)
    assert "demonstration" not in page(TEMPLATE, tmp_path)
    rows = evidence().query("metric == 'perplexity' and stage == 'pre_pv' and geometry == @GEOMETRY").assign(
        geometry="2bpp-2x6g6", beam_width=4, max_epochs=2
    )  # fmt: skip
    rows["value"] = rows["init"].map({"greedy": 100.0, "oaem": 50.0})
    one = rows[rows.init == "oaem"].assign(value=100.0)
    for name, measured in (("nothing", rows), ("rounds-1", one)):
        (tmp_path / f"archive/small-ablation-{name}-2026-12-01").mkdir()
        measured.to_csv(tmp_path / f"archive/small-ablation-{name}-2026-12-01/metrics.csv", index=False)
    *_, text = page(TEMPLATE, tmp_path).partition("## At the demonstration's budgets")
    assert "**Not run:** exact-m-step, more-text, original-inputs, rounds-10, row-weights." in text
    cells = [["100.0 ± 0.0"] * 3, ["50.00 ± 0.00"] * 3, ["2.000 [2.000, 2.000]"] * 3, ["1.000 [1.000, 1.000]"] * 3]
    greedy, oaem, changed, gap = (" | ".join(each) for each in cells)
    assert f"| As in the demonstration | greedy | {greedy} |\n| As in the demonstration | OA-EM | {oaem} |" in text
    assert f"| OA-EM of one round | OA-EM | 42, 43, 44 | {changed} |" in text
    assert f"| As in the demonstration | {changed} |\n| OA-EM of one round | {gap} |" in text


def test_ablations_of_two_search_points_are_refused() -> None:
    other = config("rounds-1").model_copy(update={"grid": load_files(ROOT / "config/evidence.yaml").grid})
    with pytest.raises(UserError, match=r"one model, geometry and search point.*grids have 2(?s:.)*  rounds-1: "):
        lines(evidence(), {"rounds-1": (other, None)})
