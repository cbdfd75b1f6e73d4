"""What section "Why" quotes and draws, of invented archives whose numbers are known."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from oaem.presentation.figures.drawing import save
from oaem.presentation.figures.why import why as draw
from oaem.presentation.why import CASES, OTHER, UNQUANTISED, Inquiry, Why
from tests.unit.presentation.paper_metrics import ROOT

ARCHIVE = ROOT / "archive"
CASE = CASES[0]
INITS = ("greedy", "oaem")
PLACE = {"model": "tiny", "geometry": CASE.geometry, "beam_width": CASE.search[0], "max_epochs": CASE.search[1]}
NAMES = {name: f"mlp.{name}_proj" for name in ("up", "down")}


def invent(folder: Path, seeds: tuple[int, ...], exchanged: tuple[int, ...] = (), factor: float = 1.0) -> None:
    """An archive in which greedy's perplexity is 400 and OA-EM's 200, times one hundredth of the seed and `factor`."""
    folder.mkdir(parents=True)
    base = {"greedy": 400.0, "oaem": 200.0}
    metrics = [{"stage": "fp16", "dataset": "boolq", "metric": "perplexity", "value": 20.0}]
    directions, exchange = [], []
    for seed in seeds:
        for init in INITS:
            run = {**PLACE, "init": init, "seed": seed}
            value = base[init] * seed / 100 * factor
            other = next(each for each in INITS if each != init)
            metrics.append({**run, "stage": "pre_pv", "dataset": "boolq", "metric": "perplexity", "value": value})
            for name in NAMES.values():
                error = {**run, "stage": "layers", "dataset": name, "metric": "relative_error", "value": 0.03}
                metrics.append(error)
                for block in (0, 1):
                    few, rest = (0.04, 0.02) if init == "greedy" else (0.01, 0.01)
                    measures = {"few_directions": few, "other_directions": rest}
                    layer = {f"relative_error_{key}": each * (block + 1) for key, each in measures.items()}
                    directions.append({**run, "block": block, "linear": name, "relative_error": rest, **layer})
            if seed in exchanged:
                parts = {"nothing": 1.0, "block 0": 0.9, NAMES["up"]: 1.25, "size": math.sqrt(base[other] / base[init])}
                for part, change in parts.items():
                    place = {"part": part, "from": other, "dataset": "boolq"}
                    exchange.append({**run, **place, "perplexity": value * change})
                taken = {"part": "few directions", "from": UNQUANTISED, "dataset": "boolq", "perplexity": value / 2}
                exchange.append({**run, **taken})
    for name, rows in (("metrics", metrics), ("directions", directions), ("exchange", exchange)):
        if rows:
            pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def test_what_is_quoted(tmp_path: Path) -> None:
    invent(tmp_path / "inquiry-2026-01-01", seeds=(42, 43), exchanged=(42,))
    found = Why(tmp_path)
    assert found.seeds("D", "pairs") == found.seeds("D", "directions") == "42, 43"
    assert found.seeds("D", "block") == found.seeds("D", "kind") == "42"
    assert found.gap("D", "boolq") == "2.000 [2.000, 2.000]"
    assert found.perplexity("D", "greedy", "boolq") == "170.0 ± 2.8"
    assert found.error("D", "walk", "oaem", "up") == "0.0300"
    assert found.error("D", "few", "greedy") == "0.0600", "the mean of two blocks"
    assert found.error_ratio("D", "few", "down") == "4.000 [4.000, 4.000]"
    assert found.lower("D", "all") == "8 of 8"
    assert found.change("D", "greedy", "everything", OTHER, "boolq") == "0.500 [0.500, 0.500]"
    assert found.change("D", "oaem", "size", OTHER, "boolq") == "1.414"
    assert found.changes("D", "greedy", "block", "boolq") == "0.90 to 0.90"
    assert found.changes("D", "greedy", "kind", "boolq") == "1.25 to 1.25"
    assert found.explained("D", "greedy", "size", "boolq") == "50 %"
    assert found.gap("D", "boolq", "few directions", UNQUANTISED) == "2.000"
    assert found.archives("D") == "`archive/inquiry-2026-01-01`"


def test_what_was_not_run_is_said_and_fills_in(tmp_path: Path) -> None:
    invent(tmp_path / "inquiry-2026-01-01", seeds=(42,))
    before = Why(tmp_path)
    assert before.shown() == ["D"]
    assert before.absent() == "D and B and B without block tuning", "no block of D was exchanged either"
    for shown in (
        before.change("D", "greedy", "size", OTHER, "boolq"),
        before.changes("D", "greedy", "block", "boolq"),
        before.explained("D", "greedy", "size", "boolq"),
        before.seeds("D", "errors"),
        before.seeds("B", "pairs"),
        before.gap("B", "boolq"),
    ):
        assert shown == "not run"
    invent(tmp_path / "inquiry-2026-01-02", seeds=(43,), exchanged=(43,))
    assert (Why(tmp_path).seeds("D", "pairs"), Why(tmp_path).seeds("D", "block")) == ("42, 43", "43")


def test_a_run_is_the_newest_archives_as_a_whole(tmp_path: Path) -> None:
    """Two makings of one run are never mixed: what was exchanged in the older one is no part of the newer."""
    invent(tmp_path / "inquiry-2026-01-01", seeds=(42, 43), exchanged=(42, 43))
    invent(tmp_path / "inquiry-2026-01-02", seeds=(42,), factor=2.0)
    found = Why(tmp_path)
    assert found.perplexity("D", "oaem", "boolq") == f"{(168 + 86) / 2:.1f} ± {(168 - 86) / math.sqrt(2):.1f}"
    assert found.seeds("D", "block") == "43"


def test_the_figure_shows_what_there_is(tmp_path: Path) -> None:
    """Without an exchange its panels say so; the same numbers give the same bytes."""
    invent(tmp_path / "inquiry-2026-01-01", seeds=(42,))
    figure = draw(Inquiry(CASE, tmp_path), "boolq")
    assert sum("Not run" in text.get_text() for axes in figure.axes for text in axes.texts) == 2
    for name in ("once", "again"):
        save(draw(Inquiry(CASE, ARCHIVE), "boolq"), tmp_path / f"{name}.svg")
    whole = draw(Inquiry(CASE, ARCHIVE), "boolq")
    assert not [text for axes in whole.axes for text in axes.texts if "Not run" in text.get_text()]
    assert (tmp_path / "once.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
