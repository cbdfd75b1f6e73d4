"""What a run's quantisation says of itself in metrics.csv."""

from typing import Any

import pytest

from oaem.config.grid import Run
from oaem.evaluation.metrics import memory_metrics
from oaem.evaluation.quantization import quantization_metrics

RUN = Run.parse("runs/toy/2bpp-2x8g8/oaem/b8-e100/s42")


def report(seconds: dict[str, float], weights: int, bits: float, error: float) -> dict[str, Any]:
    linear = {"weights": weights, "true_bits": bits, "relative_error": error, "epochs": 3, "rho": 2.0}
    return {"seconds": seconds, "linears": {"q_proj": linear}}


REPORTS = [report({"kmeans": 1.0, "adam": 2.0}, 100, 2.5, 0.1), report({"adam": 4.0}, 300, 2.1, 0.3)]


def test_seconds_are_summed_and_layers_averaged() -> None:
    found = {(row.stage, row.dataset, row.metric): row.value for row in quantization_metrics(RUN, REPORTS, "a card")}
    assert found["quantization", "kmeans", "seconds"] == 1.0
    assert found["quantization", "adam", "seconds"] == 6.0
    assert found["quantization", "total", "seconds"] == 7.0
    assert found["layers", "q_proj", "relative_error"] == pytest.approx(0.2)
    assert found["layers", "all", "true_bits"] == pytest.approx((100 * 2.5 + 300 * 2.1) / 400), "weighted by weights"


def test_memory_has_a_row_where_it_was_counted_alone() -> None:
    counted = quantization_metrics(RUN, REPORTS, "a card", 5_000_000_000)
    (memory,) = [row for row in counted if row.metric == "peak_bytes"]
    assert (memory.stage, memory.dataset, memory.value, memory.run) == ("quantization", "memory", 5e9, RUN)
    assert not [row for row in quantization_metrics(RUN, REPORTS, "cpu") if row.metric == "peak_bytes"]
    assert memory_metrics(RUN, "pv_tuning", None) == []
