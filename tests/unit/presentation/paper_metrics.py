"""Invented metrics for tests of tables, claims, figures and report: the paper's own numbers, or random ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd

from oaem.config import schema as configuration
from oaem.config.grid import Run
from oaem.config.schema import Config
from oaem.evaluation.metrics import Metric
from oaem.measurements.table import COLUMNS
from oaem.presentation.claims import reported
from oaem.presentation.tables.cells import EVERY, Source
from oaem.presentation.tables.layouts import EXTRA, TABLES, layout
from oaem.presentation.view import View

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "paper"
SHAPES = {"self_attn.q_proj": (576, 576), "self_attn.k_proj": (192, 576), "mlp.down_proj": (576, 1536)}
LINEARS = tuple(SHAPES)


def load(name: str) -> Config:
    """A configuration of the project."""
    return configuration.load(ROOT / "config" / name)


def quantisation_only() -> Config:
    """The embedded grid without PV-tuning and tasks."""
    changed = values("embedded-ten-runs.yaml")
    del changed["pv"], changed["evaluation"]["downstream"]
    return configuration.parse(changed)


def values(name: str) -> dict[str, Any]:
    """The same as plain values, to be changed and parsed."""
    return load(name).model_dump(mode="json", exclude_none=True)


def sources(config: Config) -> dict[Source, float | None]:
    """Every measurement that a table of the configuration shows, with the paper's number where it has one."""
    found: dict[Source, float | None] = {}
    beside_paper = View(config).is_paper
    for name in (*TABLES, *EXTRA):
        chosen = layout(name, config)
        seconds = {column.key: 3600.0 for column in chosen.columns if column.unit == "seconds"}
        for row in chosen.rows:
            for key, cell in row.cells.items():
                parts = [source for seed in cell.sources.values() for source in seed]
                printed = reported.value(PAPER, name, row.labels, key) if len(parts) == 1 and beside_paper else None
                scale = 60.0 if name == "prose" and row.labels["quantity"] == "q_time" else seconds.get(key, 1.0)
                for source in parts:
                    number = float(printed) * scale if isinstance(printed, (int, float)) else None
                    if found.get(source) is None:
                        found[source] = number
    return found


def frame(metrics: list[Metric]) -> pd.DataFrame:
    """Metrics as metrics.csv holds them."""
    return pd.DataFrame([metric.row() for metric in metrics], columns=COLUMNS)


def invented(config: Config, seed: int = 0, papers_own: bool = True) -> pd.DataFrame:
    """All metrics of a grid: the paper's numbers where it has them and they are wanted, random ones elsewhere."""
    draw = random.Random(seed)
    metrics = []
    for source, number in sources(config).items():
        datasets = LINEARS if source.dataset == EVERY else (source.dataset,)
        for dataset in datasets:
            value = number if papers_own and number is not None else plausible(source, draw)
            metrics.append(metric(source, dataset, value))
    return frame(metrics)


def metric(source: Source, dataset: str, value: float) -> Metric:
    """A measurement of a source."""
    run = source.target if isinstance(source.target, Run) else None
    model = run.model if run else str(source.target)
    protocol = {"dtype": "bfloat16", "device": "cpu", "versions": {"torch": "2.13.0"}}
    return Metric(model, source.stage, dataset, source.metric, value, run, protocol=protocol)


def plausible(source: Source, draw: random.Random) -> float:
    """A random number of the right size: OA-EM somewhat better than greedy, after PV-tuning better than before."""
    greedy = isinstance(source.target, Run) and source.target.init == "greedy"
    if source.kind == "time":
        return draw.uniform(120, 480)
    if source.kind == "layers":
        return draw.uniform(6, 48)
    if source.metric == "perplexity":
        start = {"fp16": 7.3, "pre_pv": 40.0 if greedy else 17.0}.get(source.stage, 12.0 if greedy else 11.5)
        return start * draw.uniform(0.97, 1.03)
    return draw.uniform(0.4, 0.7)


def swept(config: Config, seed: int = 0) -> pd.DataFrame:
    """Metrics of a grid as `invented`, but layers as their shapes have them, and greedy the worse the larger rho is."""
    draw = random.Random(seed)
    metrics = []
    for source in sources(config):
        run = source.target
        if not isinstance(run, Run) or source.kind not in ("layers", "perplexity"):
            metrics.append(metric(source, source.dataset, plausible(source, draw)))
        elif source.metric == "true_bits":
            metrics.append(metric(source, source.dataset, _true_bits(run)))
        elif source.kind == "layers":
            layers = {"rho": run.geometry.rho, "relative_error": lambda *_: draw.uniform(0.01, 0.03)}[source.metric]
            metrics += [metric(source, name, layers(*shape)) for name, shape in SHAPES.items()]
        else:
            worse = run.geometry.rho(576, 576) ** (0.05 if source.stage == "pre_pv" else 0.02)
            value = 20 * draw.uniform(0.97, 1.03) * (worse if run.init == "greedy" else 1.0)
            metrics.append(metric(source, source.dataset, value))
    return frame(metrics)


def _true_bits(run: Run) -> float:
    """The mean over weights, as a run's own blocks give it."""
    weights = {shape: shape[0] * shape[1] for shape in SHAPES.values()}
    total = sum(count * run.geometry.true_bits(*shape) for shape, count in weights.items())
    return total / sum(weights.values())
