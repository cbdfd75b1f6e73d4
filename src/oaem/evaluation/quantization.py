"""What a run's blocks say of its quantisation: compute seconds by phase, layer errors, representational ratios."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from oaem.config.grid import Run
from oaem.evaluation.metrics import Metric, memory_metrics


def quantization_metrics(
    run: Run, reports: Iterable[Mapping[str, Any]], device: str, peak_bytes: int | None = None
) -> list[Metric]:
    """Seconds by phase summed over the blocks (Q-time is their total), and per linear its mean over the blocks.

    `peak_bytes` is what the jobs held on a GPU at most; where none counted it there is no such row.
    """
    seconds: dict[str, float] = defaultdict(float)
    layers: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    weights: list[tuple[float, float]] = []
    for report in reports:
        for phase, spent in report["seconds"].items():
            seconds[phase] += spent
        for name, layer in report["linears"].items():
            weights.append((layer["weights"], layer["true_bits"]))
            for metric in ("relative_error", "epochs", "rho"):
                layers[name][metric].append(layer[metric])
    protocol = {"device": device}
    made = [Metric(run.model, "quantization", phase, "seconds", spent, run) for phase, spent in seconds.items()]
    made.append(Metric(run.model, "quantization", "total", "seconds", sum(seconds.values()), run, protocol=protocol))
    made += memory_metrics(run, "quantization", peak_bytes)
    total = sum(count for count, _ in weights)
    bits = sum(count * rate for count, rate in weights) / total
    made.append(Metric(run.model, "layers", "all", "true_bits", bits, run, n=len(weights), protocol=protocol))
    for name, measured in layers.items():
        made += [
            Metric(run.model, "layers", name, metric, fmean(values), run, n=len(values), protocol=protocol)
            for metric, values in measured.items()
        ]
    return made
