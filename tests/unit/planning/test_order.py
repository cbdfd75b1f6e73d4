"""The first table's jobs are ahead of all others, and what others wait for longest ahead of what is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from oaem.config.schema import load, parse
from oaem.planning.order import FIRST, Order

CONFIG = Path(__file__).resolve().parents[3] / "config"
LONG, SHORT = (f"runs/smollm2-135m/2bpp-2x6g6/oaem/{search}/s42" for search in ("b4-e2", "b1-e1"))
LATER = "runs/smollm2-135m/3bpp-3x6g6/oaem/b1-e1/s42"
MODEL = "smollm2-135m"


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))


def test_the_default_grid_makes_its_first_table_first(values: dict[str, Any]) -> None:
    order = Order(parse(values))
    chain = [
        order.model(MODEL), order.text(MODEL, "calibration-s42"), order.text(MODEL, "eval-boolq"),
        order.quantization(LONG, 0), order.quantization(SHORT, 0), order.measurement(f"models/{MODEL}", "fp16"),
        order.check(LONG), order.measurement(LONG, "pre_pv"), order.table("table1"),
    ]  # fmt: skip
    assert chain == sorted(chain, reverse=True) and len(set(chain)) == len(chain)
    others = [
        order.quantization(LATER, 0), order.check(LATER), order.measurement(LATER, "pre_pv"),
        order.text(MODEL, "pv-s42"), order.text(MODEL, "pv-validation"), order.measurement(LONG, "post_pv"),
        order.table("table2"),
    ]  # fmt: skip
    assert min(chain) >= FIRST > max(others)


def test_a_run_cut_into_jobs_keeps_its_longest_way_ahead(values: dict[str, Any]) -> None:
    values["quantization"]["blocks_per_job"] = 10
    order = Order(parse(values))
    long = [order.quantization(LONG, start) for start in (0, 10, 20)]
    assert long == sorted(long, reverse=True)
    assert long[0] > order.quantization(SHORT, 0) > long[2]
    assert long[2] > order.check(LONG)


def test_what_waits_for_a_gate_does_not_wait_for_other_quantisations() -> None:
    config = load(CONFIG / "paper.yaml")
    order = Order(config)
    runs = {run.path for run in config.runs()}
    gated = [name for name, model in config.models.items() if model.expected_perplexity]
    assert gated
    for name in gated:
        first = max(order.quantization(run, 0) for run in runs if run.split("/")[1] == name)
        assert order.measurement(f"models/{name}", "fp16") > first
        assert order.text(name, "gate") > first


def test_a_grid_from_an_archive_has_an_order(values: dict[str, Any], tmp_path: Path) -> None:
    values["from_archive"] = str(tmp_path)
    order = Order(parse(values))
    assert order.first == set()
    assert order.table("table1") > order.table("table2")
