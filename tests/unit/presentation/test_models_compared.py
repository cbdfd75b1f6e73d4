"""What section "Across models" quotes, of invented archives whose numbers are computed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from oaem.measurements.table import COLUMNS
from oaem.presentation.models_compared import FAR, GEOMETRY, Compared
from oaem.presentation.pages import INITS, TEXTS
from oaem.presentation.view import TASK_METRICS

SMALL, MIDDLE, LARGE = "SmolLM2 135M", "Gemma 3 270M", "Qwen2.5-Coder 0.5B"
NAMES = {SMALL: "smollm2-135m", MIDDLE: "gemma-3-270m", LARGE: "qwen2.5-coder-0.5b"}
PAPER, DEMONSTRATION = (8, 100), (4, 2)
Pair = tuple[float, float]  # greedy's, OA-EM's


def invent(
    folder: Path,
    label: str,
    perplexities: Mapping[int, Pair],
    search: tuple[int, int] = PAPER,
    stage: str = "pre_pv",
    rho: Sequence[float] = (0.5, 1.5),
    layers: Mapping[int, Sequence[Pair]] | None = None,
    accuracies: Mapping[int, Pair] | None = None,
) -> None:
    """Add a model's runs to an archive: one perplexity on all texts, errors of layers on the model's inputs, tasks."""
    model: dict[str, Any] = {"model": NAMES[label]}
    rows = [{**model, "stage": "fp16", "dataset": text, "metric": "perplexity", "value": 20.0} for text in TEXTS]
    rows += task_rows({**model, "stage": "fp16"}, 0.7)
    directions = []
    for seed, pair in perplexities.items():
        for side, init in enumerate(INITS):
            run = {**model, "geometry": GEOMETRY, "bpp": 2.0, "init": init, "seed": seed}
            run |= {"beam_width": search[0], "max_epochs": search[1]}
            measured = {"metric": "perplexity", "stage": stage, "value": pair[side]}
            rows += [{**run, **measured, "dataset": text} for text in TEXTS]
            for name, value in zip(("mlp.up_proj", "mlp.down_proj"), rho, strict=True):
                layer = {**run, "stage": "layers", "dataset": name}
                rows.append({**layer, "metric": "rho", "value": value})
                rows.append({**layer, "metric": "relative_error", "value": 0.01 * (side + 1)})
            rows.append({**run, "stage": "layers", "dataset": "all", "metric": "true_bits", "value": 2.125})
            if accuracies and seed in accuracies:
                rows += task_rows({**run, "stage": "post_pv"}, accuracies[seed][side])
            for block, errors in enumerate((layers or {}).get(seed, ())):
                place = {"block": block, "linear": "mlp.up_proj", "relative_error": errors[side]}
                directions.append({**run, **place})
    folder.mkdir(exist_ok=True)
    add(folder / "metrics.csv", pd.DataFrame(rows, columns=COLUMNS))
    if directions:
        add(folder / "directions.csv", pd.DataFrame(directions))


def task_rows(run: Mapping[str, Any], accuracy: float) -> list[dict[str, Any]]:
    """The six tasks with this accuracy, each with a standard error of 0.03; what the paper does not report is zero."""
    found = []
    for task, (_, reported) in TASK_METRICS.items():
        for metric in ("acc", "acc_norm"):
            value = accuracy if metric == reported else 0.0
            found.append({**run, "dataset": task, "metric": metric, "value": value, "stderr": 0.03})
    return found


def add(path: Path, rows: pd.DataFrame) -> None:
    rows.to_csv(path, mode="a", header=not path.exists(), index=False)


def test_what_is_quoted_of_a_model(tmp_path: Path) -> None:
    layers = {42: [(0.04, 0.01), (0.02, 0.02)]}
    invent(tmp_path / "three-models-2026-01-01", LARGE, {42: (40, 50), 43: (45, 36)}, layers=layers)
    paper, demonstration = Compared(tmp_path).all
    assert paper.shown() == [LARGE]
    assert demonstration.shown() == []
    assert paper.mean(LARGE, "greedy", *FAR) == f"42.50 ± {5 / math.sqrt(2):.2f}"
    assert paper.ratio(LARGE, *FAR).startswith("1.000 ["), "0.8 and 1.25 are as far from one"
    assert paper.better(LARGE, *FAR) == "1 of 2"
    assert paper.original(LARGE, "boolq") == "20.00"
    assert paper.rho(LARGE) == "0.5 to 1.5"
    assert (paper.error(LARGE, "greedy"), paper.error(LARGE, "oaem")) == ("0.0100", "0.0200")
    assert paper.bits(LARGE) == "2.12"
    assert paper.error_ratio(LARGE) == "2.000", "four times and once: the geometric mean of layers"
    assert paper.lower(LARGE) == "1 of 2"
    assert paper.inquired(LARGE) == "42"
    assert paper.places(LARGE) == "`archive/three-models-2026-01-01`"


def test_one_seed_has_a_ratio_and_no_interval(tmp_path: Path) -> None:
    invent(tmp_path / "three-models-2026-01-01", LARGE, {42: (40, 50)})
    found = Compared(tmp_path)
    assert found.all[0].ratio(LARGE, *FAR) == "0.800"
    assert found.tally(LARGE).words == "0 of 3 comparisons, with every seed in 0"
    assert found.tally(LARGE).intervals == "0 above 1, 0 below 1 and 0 around it"


def test_what_was_not_run_is_said_and_fills_in(tmp_path: Path) -> None:
    empty = Compared(tmp_path)
    assert (empty.labels(), empty.archives(), empty.trends(), empty.ends()) == ([], "not run", [], (0, 0))
    invent(tmp_path / "three-models-2026-01-01", LARGE, {42: (40, 50)})
    before = Compared(tmp_path)
    paper = before.all[0]
    assert before.absent() == (
        f"{SMALL}, {MIDDLE}, Qwen2.5-Coder 1.5B (paper), {SMALL}, {MIDDLE}, {LARGE} (demonstration)"
    )
    for shown in (
        paper.seeds(MIDDLE),
        paper.seeds(LARGE, "post_pv"),
        paper.original(MIDDLE, "boolq"),
        paper.error_ratio(LARGE),
        paper.lower(LARGE),
        paper.inquired(LARGE),
        paper.places(MIDDLE),
    ):
        assert shown == "not run"
    assert before.tasked() == before.inquired() == before.trends() == []
    invent(tmp_path / "families-2026-01-01", SMALL, {42: (40, 20)}, DEMONSTRATION)
    invent(tmp_path / "families-2026-01-01", LARGE, {42: (40, 50)}, DEMONSTRATION)
    invent(tmp_path / "three-models-2026-01-02", MIDDLE, {42: (40, 20)})
    after = Compared(tmp_path)
    assert [each.shown() for each in after.all] == [[MIDDLE, LARGE], [SMALL, LARGE]]
    assert after.others() == f"{MIDDLE}, {LARGE}"
    assert after.archives().count("`archive/") == 3


def test_runs_of_another_search_or_geometry_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "three-models-2026-01-01"
    invent(folder, LARGE, {42: (40, 50)}, search=(4, 100))
    assert Compared(tmp_path).labels() == []
    rows = pd.read_csv(folder / "metrics.csv").assign(beam_width=8.0)
    rows.assign(geometry=rows["geometry"].str.replace("2bpp-2x8g8", "3bpp-3x8g8")).to_csv(folder / "metrics.csv")
    assert Compared(tmp_path).labels() == []


def test_the_evidence_stands_and_what_it_lacks_comes_from_the_other(tmp_path: Path) -> None:
    invent(tmp_path / "evidence-2026-01-01", SMALL, {42: (60, 50)})
    invent(
        tmp_path / "three-models-2026-02-02",
        SMALL,
        {42: (90, 50), 43: (33, 30)},
        layers={42: [(0.03, 0.01)]},
        accuracies={42: (0.4, 0.5)},
    )
    paper = Compared(tmp_path).all[0]
    assert paper.ratios(SMALL, *FAR) == {42: 1.2, 43: 1.1}
    assert paper.error_ratio(SMALL) == "3.000"
    assert paper.tasked(SMALL) == [42]
    assert paper.folders(SMALL) == ["evidence-2026-01-01", "three-models-2026-02-02"]


def test_of_one_kind_a_run_is_the_newest_archives_as_a_whole(tmp_path: Path) -> None:
    layers = {42: [(0.03, 0.01)], 43: [(0.02, 0.01)]}
    invent(tmp_path / "three-models-2026-01-01", LARGE, {42: (60, 50), 43: (60, 50)}, layers=layers)
    invent(tmp_path / "three-models-2026-01-02", LARGE, {42: (55, 50)})
    newer = tmp_path / "three-models-2026-01-02" / "metrics.csv"
    rows = pd.read_csv(newer)
    rows.loc[rows["stage"] == "fp16", "value"] = 21.0
    rows.to_csv(newer, index=False)
    paper = Compared(tmp_path).all[0]
    assert paper.ratios(LARGE, *FAR) == {42: 1.1, 43: 1.2}
    assert paper.inquired(LARGE) == "43", "what was asked of the older making is no part of the newer"
    assert paper.original(LARGE, "boolq") == "21.00"


def test_tasks_are_the_papers_accuracies_of_seeds_with_all_six(tmp_path: Path) -> None:
    folder = tmp_path / "three-models-2026-01-01"
    seeds = {42: (60, 50), 43: (60, 50), 44: (60, 50)}
    accuracies = {42: (0.4, 0.5), 43: (0.6, 0.5), 44: (0.1, 0.1)}
    invent(folder, LARGE, seeds, stage="post_pv", accuracies=accuracies)
    rows = pd.read_csv(folder / "metrics.csv")
    lacking = (rows["seed"] == 44) & (rows["init"] == "oaem") & (rows["dataset"] == "piqa")
    rows[~lacking].to_csv(folder / "metrics.csv", index=False)
    found = Compared(tmp_path)
    paper = found.all[0]
    assert paper.tasked(LARGE) == [42, 43]
    assert paper.accuracy(LARGE, "greedy") == f"0.500 ± {0.2 / math.sqrt(2):.3f}"
    assert paper.accuracy(LARGE, "oaem") == "0.500 ± 0.000"
    assert paper.original_accuracy(LARGE) == "0.700"
    assert found.standard_error() == f"{0.03 / math.sqrt(6):.3f}"
    assert found.near_accuracies() == (1, 1), "both means are 0.5"
    invent(folder, SMALL, {42: (60, 50)}, stage="post_pv", accuracies={42: (0.4, 0.42)})
    assert Compared(tmp_path).near_accuracies() == (1, 2), "0.02 is more than 0.012"


def test_models_are_compared_in_the_order_of_their_rho(tmp_path: Path) -> None:
    folder = tmp_path / "families-2026-01-01"
    places = {LARGE: (0.9, 8.0), SMALL: (0.2, 1.7), MIDDLE: (0.3, 2.5)}
    ratios = {LARGE: {42: 0.8, 43: 0.8}, SMALL: {42: 1.9, 43: 1.9}, MIDDLE: {42: 2.0, 43: 1.8}}
    errors = {LARGE: 0.9, SMALL: 1.4, MIDDLE: 1.2}
    for label, rho in places.items():
        pairs = {seed: (ratio * 100, 100.0) for seed, ratio in ratios[label].items()}
        invent(folder, label, pairs, DEMONSTRATION, rho=rho, layers={42: [(errors[label], 1.0)]})
    found = Compared(tmp_path)
    demonstration = found.all[1]
    assert [rung.name for rung in demonstration.trend("pre_pv").rungs] == [SMALL, MIDDLE, LARGE]
    # The mean of 2.0 and 1.8 is 1.897 on logarithms: the first step goes down in the mean and with one of the seeds.
    assert demonstration.trend("pre_pv").steps(*FAR) == f"0 of 2 (1, 0); largest at {SMALL}"
    end = math.sqrt((0.8 / 1.9) ** 2)
    assert demonstration.from_end_to_end(*FAR).startswith(f"{end:.3f} [")
    assert [(each.name, stage) for each, stage in found.trends()] == [("demonstration", "pre_pv")]
    assert found.ends() == (0, 3)
    assert [rung.name for rung in demonstration.by_errors().rungs] == [LARGE, MIDDLE, SMALL]
    assert demonstration.by_errors().growing(*FAR) == 2
    assert found.agreeing() == (3, 3)
    assert found.tally(MIDDLE).words == "3 of 3 comparisons, with every seed in 3"
    assert found.winners() == found.winners("pre_pv") == [SMALL, MIDDLE]
    assert found.winners("post_pv") == [], "none was tuned"
    assert found.single() == "", "the paper's budgets have none"
    for label, pairs in ((SMALL, {42: (60, 50)}), (LARGE, {42: (60, 50), 43: (60, 50)})):
        invent(tmp_path / "three-models-2026-01-01", label, pairs)
    assert Compared(tmp_path).single() == SMALL
    assert found.tally(MIDDLE).pairs == "6 of 6"


def test_models_without_a_seed_in_common_are_not_paired(tmp_path: Path) -> None:
    for label, seed, rho in ((SMALL, 42, 0.5), (LARGE, 43, 2.0)):
        invent(tmp_path / "three-models-2026-01-01", label, {seed: (60, 50)}, rho=(rho, rho))
    assert Compared(tmp_path).all[0].from_end_to_end(*FAR) == "no seed in common"


def test_a_larger_ratio_at_the_larger_rho_is_counted(tmp_path: Path) -> None:
    for label, ratio, rho in ((SMALL, 1.1, 0.5), (LARGE, 1.3, 2.0)):
        pairs = {42: (ratio * 100, 100.0)}
        errors = {42: [(0.9, 1.0)]}
        invent(tmp_path / "three-models-2026-01-01", label, pairs, rho=(rho, rho), layers=errors)
    found = Compared(tmp_path)
    assert found.ends() == (3, 3)
    assert found.agreeing() == (0, 2), "errors below one, far ratios above it"
