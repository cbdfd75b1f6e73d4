"""Table and figure rho_sweep: every number recomputed from an invented sweep; nothing of it in other grids."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from oaem.config import schema as configuration
from oaem.config.geometry import Geometry
from oaem.planning.rules import figure_files, table_files, table_inputs
from oaem.presentation.figures.figures import FIGURES
from oaem.presentation.report import render
from oaem.presentation.tables import markdown
from oaem.presentation.tables.build import build
from tests.unit.presentation.paper_metrics import PAPER, SHAPES, load, swept, values

UPWARDS = ["2bpp-2x12g12", "2bpp-2x8g8", "2bpp-2x6g6", "2bpp-2x4g4", "2bpp-2x3g3"]


def test_rows_stand_from_the_smallest_rho_upwards() -> None:
    config = load("rho-sweep.yaml")
    built = build("rho_sweep", swept(config), config, PAPER)
    assert built["geometry"].drop_duplicates().tolist() == UPWARDS
    assert len(built) == 5 * 2 * 3
    assert (built["missing"] == "").all()
    assert built["rho_ours"].is_monotonic_increasing
    first = built.drop_duplicates("geometry")
    for name, low, middle, high, bits in first[
        ["geometry", "rho_min_ours", "rho_ours", "rho_max_ours", "true_bits_ours"]
    ].itertuples(index=False):
        geometry = Geometry.parse(name)
        rhos = [geometry.rho(*shape) for shape in SHAPES.values()]
        assert (low, high) == (pytest.approx(min(rhos), rel=1e-5), pytest.approx(max(rhos), rel=1e-5))
        assert middle == pytest.approx(stats.gmean(rhos), rel=1e-5)
        weights = [rows * columns for rows, columns in SHAPES.values()]
        rates = [geometry.true_bits(*shape) for shape in SHAPES.values()]
        total = sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / sum(weights)
        assert bits == pytest.approx(total, abs=1e-6)
    assert first["true_bits_ours"].iloc[0] > 4 > 2.5 > first["true_bits_ours"].iloc[1], "codebooks outweigh codes"


def test_ratios_and_errors_are_those_of_the_metrics() -> None:
    config = load("rho-sweep.yaml")
    metrics = swept(config)
    built = build("rho_sweep", metrics, config, PAPER)
    stages = {"before PV": "pre_pv", "after PV": "post_pv"}
    texts = {domain.label: key for key, domain in config.evaluation.perplexity.items()}
    for row in built.to_dict("records"):
        own = metrics[(metrics.geometry == row["geometry"])]
        runs = own[(own.stage == stages[row["stage"]]) & (own.dataset == texts[row["text"]])]
        pair = runs.pivot(index="seed", columns="init", values="value")
        assert len(pair) == 2
        logs = pair.map(math.log)
        interval = stats.ttest_rel(logs.greedy, logs.oaem).confidence_interval(0.95)
        expected = [(logs.greedy - logs.oaem).mean(), interval.low, interval.high]
        shown = [row[f"ratio_{suffix}"] for suffix in ("ours", "low", "high")]
        assert shown == [pytest.approx(math.exp(value), abs=2e-6) for value in expected]
        for init in ("greedy", "oaem"):
            assert row[f"{init}_ours"] == pytest.approx(pair[init].mean(), abs=1e-6)
            assert row[f"{init}_std"] == pytest.approx(pair[init].std(ddof=1), abs=1e-6)
            errors = own[(own.metric == "relative_error") & (own.init == init)]["value"]
            assert row[f"error_{init}_ours"] == pytest.approx(errors.mean(), abs=1e-6)


def test_small_and_large_rho_can_be_read() -> None:
    config = load("rho-sweep.yaml")
    text = markdown.render("rho_sweep", swept(config), config, PAPER)
    assert "| 0.0005493 |" in text
    assert "| 4608 |" in text


@pytest.mark.parametrize("grid", ["config.yaml", "paper.yaml", "evidence.yaml"])
def test_another_grid_has_none_of_it(grid: str) -> None:
    config = load(grid)
    assert "rho_sweep" not in " ".join([*table_files(config), *figure_files(config)])
    built = build("rho_sweep", swept(config), config, PAPER)
    assert len(built) == 1
    assert built["missing"].str.contains("not in this grid (no three geometries", regex=False).all()
    assert 'id="rho_sweep"' not in render(swept(config), config, PAPER)


def test_its_own_grid_asks_for_it() -> None:
    config = load("rho-sweep.yaml")
    assert "results/tables/rho_sweep.md" in table_files(config)
    assert "results/figures/rho_sweep.svg" in figure_files(config)
    wanted = table_inputs(config, "rho_sweep")
    # Each of 20 runs: perplexity before and after PV-tuning, and what its layers say.
    assert len(wanted) == 20 * 3
    page = render(swept(config), config, PAPER)
    assert 'id="rho_sweep"' in page
    assert 'id="figure-rho_sweep"' in page


def test_two_geometries_or_two_rates_are_no_sweep() -> None:
    changed = values("rho-sweep.yaml")
    changed["grid"][0]["bpp"] = changed["grid"][0]["bpp"][:2]
    changed["geometries"]["3"] = {"num_codebooks": 3, "nbits": 8, "group_size": 8}
    changed["grid"].append({**changed["grid"][0], "bpp": ["3"]})
    assert "results/tables/rho_sweep.md" not in table_files(configuration.parse(changed))


def test_what_was_not_run_is_said() -> None:
    config = load("rho-sweep.yaml")
    metrics = swept(config)
    fewer = metrics[~((metrics.geometry == "2bpp-2x4g4") & (metrics.stage == "post_pv") & (metrics.init == "greedy"))]
    built = build("rho_sweep", fewer, config, PAPER)
    lacking = built[built["missing"] != ""]
    assert lacking["missing"].unique().tolist() == ["greedy: not run; ratio: not run"]
    assert lacking[["geometry", "stage"]].drop_duplicates().values.tolist() == [["2bpp-2x4g4", "after PV"]]


def test_the_figure_has_a_panel_a_stage_and_a_mark_a_seed() -> None:
    config = load("rho-sweep.yaml")
    figure = FIGURES["rho_sweep"](swept(config), config, PAPER)
    ratios = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in ratios] == ["before PV-tuning", "after PV-tuning"]
    for axes in ratios:
        marks = [tuple(place) for collection in axes.collections for place in collection.get_offsets()]
        assert len(marks) == 5 * 3 * 2
        low, high = axes.get_ylim()
        assert all(low < height < high for _, height in marks)
    names = [
        label.get_text() for axes in figure.axes for label in axes.get_yticklabels() if "bit over" in label.get_text()
    ]
    assert [name.split(":")[0] for name in names] == [f"2 × {bits} bit over {bits}" for bits in (12, 8, 6, 4, 3)]


def test_the_figure_without_a_stage_says_so() -> None:
    config = load("rho-sweep.yaml")
    metrics = swept(config)
    figure = FIGURES["rho_sweep"](metrics[metrics.stage != "post_pv"], config, PAPER)
    said = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "no pair of greedy\nand OA-EM has a perplexity after PV yet" in said
