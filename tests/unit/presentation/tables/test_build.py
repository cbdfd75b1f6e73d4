"""Tables from metrics: shapes, the paper's numbers beside ours, and what is missing."""

from __future__ import annotations

import pandas as pd
import pytest

from oaem.config import schema as configuration
from oaem.errors import UserError
from oaem.measurements.table import COLUMNS, read_csv
from oaem.planning.rules import FIGURE_NAMES, TABLE_NAMES
from oaem.presentation import captions
from oaem.presentation.claims import reported
from oaem.presentation.tables import layouts, markdown
from oaem.presentation.tables.build import EXTRA, TABLES, Measurements, build, fill
from oaem.presentation.tables.needs import all_needs, needs
from tests.unit.presentation.paper_metrics import PAPER, invented, load, quantisation_only, values

EMPTY = pd.DataFrame(columns=COLUMNS)
ALL = (*TABLES, *EXTRA)


def test_there_are_seventeen_tables() -> None:
    assert ("rho", *(f"table{number}" for number in range(1, 17))) == TABLES


@pytest.mark.parametrize("name", TABLES)
def test_paper_grid_has_the_papers_rows_in_order(name: str) -> None:
    built = build(name, EMPTY, load("paper.yaml"), PAPER)
    labels = [column for column in built.columns if not column.endswith(("_ours", "_paper", "_difference", "missing"))]
    ours = [["" if pd.isna(cell) else str(cell) for cell in row] for row in built[labels].itertuples(index=False)]
    assert ours == [[row[label] for label in labels] for row in reported.rows(PAPER, name)]


@pytest.mark.parametrize("name", TABLES)
def test_every_reported_number_stands_in_its_table(name: str) -> None:
    built = build(name, EMPTY, load("paper.yaml"), PAPER)
    shown = [value for column in built if column.endswith("_paper") for value in built[column].dropna()]
    cells = [row[key] for row in reported.rows(PAPER, name) for key in row if f"{key}_paper" in built.columns]
    assert sorted(map(str, shown)) == sorted(str(reported.number(cell)) for cell in cells if cell)
    assert (
        built.filter(like="_ours")
        .drop(columns=["num_codebooks_ours", "capacity_ours"], errors="ignore")
        .isna()
        .all(axis=None)
    )


@pytest.mark.parametrize("name", layouts.shown(ALL, load("paper.yaml")))
def test_the_papers_own_numbers_give_no_difference(name: str) -> None:
    config = load("paper.yaml")
    built = build(name, invented(config), config, PAPER)
    # Averages, gaps and ratios are recomputed from printed numbers, so they differ by the rounding of these.
    slack = {"gap": 0.011, "ratio": 0.006, "avg": 0.00101, "greedy": 0.00101, "oaem": 0.00101}
    for column in built.filter(like="_difference"):
        if name == "table5" and column != "ratio_difference":
            limit = 1e-6
        else:
            limit = slack.get(column.removesuffix("_difference"), 1e-6)
        assert (built[column].dropna().abs() <= limit).all(), column
    assert (built["missing"] == "").all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("grid", ["config.yaml", "paper.yaml"])
def test_every_table_builds_with_all_some_and_no_metrics(name: str, grid: str) -> None:
    config = load(grid)
    everything = invented(config, papers_own=False)
    for metrics in (everything, everything.sample(frac=0.4, random_state=0), EMPTY):
        built = build(name, metrics, config, PAPER)
        text = markdown.render(name, metrics, config, PAPER)
        table = fill(name, Measurements(metrics), config, PAPER)
        assert text.startswith(f"# {captions.heading(name, table.layout.model)}\n")
        assert len(built) == len(table.values)


def test_embedded_grid_uses_its_own_domains_and_points() -> None:
    config = load("embedded-ten-runs.yaml")
    first = build("table1", invented(config), config, PAPER)
    assert {"boolq_ours", "wikihow_ours", "q_time_min_ours"} <= set(first.columns)
    points = [(1, 2), (2, 2), (4, 2), (2, 1)]
    expected = [[init, beam, epochs] for init in ("Greedy", "OA-EM") for beam, epochs in points]
    assert first[["init", "beam", "epochs"]].iloc[1:].values.tolist() == expected
    assert first.filter(like="_paper").isna().all(axis=None)
    fifth = build("table5", invented(config), config, PAPER)
    assert fifth["benchmark"].tolist() == ["WikiHow", "LAMBADA", "Wikipedia"]
    assert fifth["ratio_ours"].notna().all()
    assert len(build("rho", invented(config), config, PAPER)) == 2


def test_missing_says_not_in_this_grid_or_not_run() -> None:
    config = quantisation_only()
    thirteenth = build("table13", EMPTY, config, PAPER)
    assert thirteenth["missing"].str.contains("arc_c: not in this grid (no second model)", regex=False).all()
    assert "arc_c: not in this grid (no downstream tasks)" in build("table7", EMPTY, config, PAPER).loc[0, "missing"]
    first = build("table1", EMPTY, config, PAPER)
    assert first.loc[1, "missing"] == "boolq: not run; wikihow: not run; q_time_min: not run"
    assert "not in this grid (no Llama 8B)" in build("table12", EMPTY, _only_one_model(), PAPER).loc[0, "missing"]


def _only_one_model() -> configuration.Config:
    changed = values("paper.yaml")
    changed["grid"] = [entry for entry in changed["grid"] if entry["model"] == "llama-3.2-3b"]
    return configuration.parse(changed)


def test_c4_variants_are_never_exchanged() -> None:
    config = load("paper.yaml")
    metrics = invented(config)
    metrics.loc[metrics["dataset"] == "c4", "value"] = 100.0
    metrics.loc[metrics["dataset"] == "c4_new", "value"] = 200.0
    assert set(build("table1", metrics, config, PAPER)["c4_ours"]) == {100.0}
    assert set(build("table6", metrics, config, PAPER)["c4_ours"]) == {200.0}
    twelfth = build("table12", metrics, config, PAPER)
    assert set(twelfth["pre_c4_ours"]) == {100.0}
    assert set(twelfth["post_c4_ours"]) == {200.0}
    changed = values("paper.yaml")
    del changed["evaluation"]["perplexity"]["c4"]
    lacking = build("table1", metrics, configuration.parse(changed), PAPER)
    assert lacking["missing"].str.contains("c4: not in this grid").all()


def test_seeds_are_averaged_and_a_missing_one_is_named() -> None:
    changed = values("embedded-ten-runs.yaml")
    for entry in changed["grid"]:
        entry["seeds"] = [1, 2, 3]
    config = configuration.parse(changed)
    metrics = invented(config)
    built = build("table1", metrics, config, PAPER)
    three = metrics[(metrics["stage"] == "pre_pv") & (metrics["dataset"] == "boolq") & (metrics["init"] == "greedy")]
    three = three[(three["beam_width"] == 4) & (three["geometry"] == "2bpp-2x6g6")]["value"]
    row = built[(built["init"] == "Greedy") & (built["beam"] == 4)].iloc[0]
    assert len(three) == 3
    assert row["boolq_ours"] == pytest.approx(three.mean(), abs=1e-6)
    assert row["boolq_std"] == pytest.approx(three.std(), abs=1e-6)
    fewer = build("table1", metrics.drop(three.index[0]), config, PAPER)
    row = fewer[(fewer["init"] == "Greedy") & (fewer["beam"] == 4)].iloc[0]
    assert row["missing"] == "boolq: not run (1 of 3 seeds)"
    assert row["boolq_ours"] == pytest.approx(three.iloc[1:].mean(), abs=1e-6)
    ratio = build("table5", metrics, config, PAPER)
    assert ratio["ratio_std"].notna().all()


def test_a_ratio_pairs_runs_of_the_same_seed() -> None:
    changed = values("embedded-ten-runs.yaml")
    for entry in changed["grid"]:
        entry["seeds"] = [1, 2]
    config = configuration.parse(changed)
    metrics = invented(config)
    far = metrics[
        (metrics["dataset"] == "boolq") & (metrics["stage"] == "pre_pv") & (metrics["geometry"] == "2bpp-2x6g6")
    ]
    for index, row in far[(far["beam_width"] == 2) & (far["max_epochs"] == 2)].iterrows():
        metrics.loc[index, "value"] = {("greedy", 1): 10.0, ("oaem", 1): 5.0, ("greedy", 2): 90.0, ("oaem", 2): 30.0}[
            row["init"], row["seed"]
        ]
    ratio = build("table5", metrics, config, PAPER).iloc[2]["ratio_ours"]
    assert ratio == pytest.approx(6**0.5), "the mean of 2 and 3 as logarithms"


def test_metrics_survive_a_csv(tmp_path) -> None:
    config = load("paper.yaml")
    metrics = invented(config)
    metrics.to_csv(tmp_path / "metrics.csv", index=False)
    for name in ALL:
        pd.testing.assert_frame_equal(
            build(name, read_csv(tmp_path / "metrics.csv"), config, PAPER), build(name, metrics, config, PAPER)
        )


def test_contradicting_metrics_are_refused() -> None:
    config = load("embedded-ten-runs.yaml")
    metrics = invented(config)
    twice = pd.concat([metrics, metrics.iloc[[0]].assign(value=1.25)])
    with pytest.raises(UserError, match="two different values"):
        build("table1", twice, config, PAPER)


def test_a_misspelt_paper_model_is_refused() -> None:
    changed = values("paper.yaml")
    changed["models"]["llama-3.2-3b"]["paper_model"] = "Llama 3.2 3B"
    with pytest.raises(UserError, match="none of the paper's models"):
        build("table1", EMPTY, configuration.parse(changed), PAPER)


def test_unknown_table() -> None:
    with pytest.raises(UserError, match="'table17' is no table"):
        build("table17", EMPTY, load("embedded-ten-runs.yaml"), PAPER)


@pytest.mark.parametrize("grid", ["config.yaml", "paper.yaml"])
def test_needs_are_what_a_table_shows(grid: str) -> None:
    config = load(grid)
    metrics = invented(config)
    for name in ALL:
        kept = [False] * len(metrics)
        keys = set(needs(name, config))
        for index, row in enumerate(metrics.itertuples()):
            kept[index] = any(_serves(row, need) for need in keys)
        pd.testing.assert_frame_equal(build(name, metrics[kept], config, PAPER), build(name, metrics, config, PAPER))


def _serves(row, need) -> bool:
    target, stage, kind = need
    tasks = {"arc_challenge", "arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"}
    kinds = {"quantization": "time", "pv_tuning": "time", "layers": "layers"}
    own = kinds.get(row.stage, "downstream" if row.dataset in tasks else "perplexity")
    run = (row.model, row.geometry, row.init, row.beam_width)
    wanted = target if isinstance(target, str) else (target.model, target.geometry.name, target.init, target.beam_width)
    return own == kind and row.stage == stage and (row.model == wanted if row.stage == "fp16" else run == wanted)


def test_needs_of_the_papers_table_2() -> None:
    found = needs("table2", load("paper.yaml"))
    assert len(found) == 24
    assert {(stage, kind) for _, stage, kind in found} == {
        ("pre_pv", "perplexity"),
        ("post_pv", "perplexity"),
        ("quantization", "time"),
    }
    assert {run.path.split("/")[2] for run, _, _ in found} == {"2bpp-2x8g8"}
    everything = all_needs(load("paper.yaml"))
    assert len(everything) == len(set(everything))
    assert {run.path for run, _, _ in everything if not isinstance(run, str)} == {
        run.path for run in load("paper.yaml").runs()
    }


def test_markdown_marks_missing_cells_and_prints_differences() -> None:
    config = load("paper.yaml")
    metrics = invented(config)
    one = (metrics["dataset"] == "wikitext2") & (metrics["stage"] == "post_pv") & (metrics["init"] == "oaem")
    metrics.loc[one & (metrics["beam_width"] == 16), "value"] = 11.60
    text = markdown.render("table2", metrics, config, PAPER)
    assert "11.60 (11.49; +0.11)" in text
    assert "Nothing is missing." in text
    assert "not run (352.39)" in markdown.render("table2", EMPTY, config, PAPER)


def test_everything_that_the_workflow_makes_has_a_caption() -> None:
    made = [*TABLE_NAMES, *FIGURE_NAMES, "claims", "report"]
    assert set(made) <= set(captions.names())
    assert captions.rst("table1").startswith("**Table 1. ")
