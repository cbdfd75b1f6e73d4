"""What a measurement is. Those made together are one JSON file; the union of all is results/metrics.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.config.grid import Run
from oaem.errors import UserError
from oaem.measurements.table import COLUMNS, RUN_COLUMNS, joined, of_rows, read_csv
from oaem.runtime.atomic import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """One measured number and how it was measured."""

    model: str
    stage: str
    dataset: str
    metric: str
    value: float
    run: Run | None = None
    role: str = ""
    label: str = ""
    stderr: float | None = None
    n: int | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def on(self, dataset: str, role: str, label: str, **found: Any) -> Metric:
        """The same measurement on another dataset, with what was `found` there."""
        return replace(self, dataset=dataset, role=role, label=label, **found)

    def row(self) -> dict[str, Any]:
        """The measurement as one row of metrics.csv."""
        run: dict[str, Any] = dict.fromkeys(RUN_COLUMNS)
        run["model"] = self.model
        if self.run is not None:
            run |= {key: value for key, value in asdict(self.run).items() if key != "geometry"}
            run |= {"geometry": self.run.geometry.name, "bpp": self.run.geometry.bits_per_parameter}
        own = {key: getattr(self, key) for key in COLUMNS if key not in RUN_COLUMNS and key != "protocol"}
        return {**run, **own, "protocol": json.dumps(dict(self.protocol), sort_keys=True)}


def memory_metrics(run: Run, stage: str, peak_bytes: int | None) -> list[Metric]:
    """The row of the GPU memory that a stage of a run held at most, in bytes; none where nobody counted it."""
    return [] if peak_bytes is None else [Metric(run.model, stage, "memory", "peak_bytes", peak_bytes, run)]


def write_metrics(path: Path | str, metrics: Iterable[Metric], provenance: Mapping[str, Any]) -> None:
    """Write measurements that were made together, with their provenance; a number that is not finite is refused."""
    rows = []
    for metric in metrics:
        if not math.isfinite(metric.value):
            raise UserError(
                f"{path}: {metric.metric} on {metric.dataset} came out as {metric.value}. The model is broken or the "
                "numbers overflowed: look at the layer errors of the run before trusting any of its results."
            )
        rows.append(metric.row())
    write_json(path, {"metrics": rows, "provenance": dict(provenance)})


def collect(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The union of the measurements in the JSON files `paths`, sorted, one row a measurement."""
    return of_rows(row for path in paths for row in read_json(path)["metrics"])


def load_metrics(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The measurements in `paths`: JSON files, or metrics.csv as made before, of one archive or several, joined."""
    files = [str(path) for path in paths]
    return joined(map(read_csv, files)) if any(name.endswith(".csv") for name in files) else collect(files)
