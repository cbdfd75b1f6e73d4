"""One JSON a measurement; their union is `results/metrics.csv`, the only thing that tables, figures and claims read.

Columns of the table (one row a measurement):

    model, geometry, bpp, init, beam_width, max_epochs, seed
        the run; geometry, init and the rest are empty for the unquantised model
    stage       fp16 | pre_pv | post_pv | post_pv_validation | post_pv_last | quantization | pv_tuning | layers
    dataset     what was measured on, for example wikitext2, c4, c4_new, arc_challenge; for times the phase
    role        in_domain | near | far for text domains, task for downstream tasks, empty otherwise
    label       the name that tables print for the dataset
    metric      perplexity | acc | acc_norm | seconds | rho | relative_error | bytes ...
    value, stderr, n
    protocol    JSON: dataset, split, revision, window, variant, tokens, dtype, device, library versions
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.config.grid import Run
from oaem.errors import UserError
from oaem.runtime.atomic import read_json, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = ["model", "geometry", "bpp", "init", "beam_width", "max_epochs", "seed"]
COLUMNS = [*RUN_COLUMNS, "stage", "dataset", "role", "label", "metric", "value", "stderr", "n", "protocol"]


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
    """The union of the measurements in `paths`, sorted, one row a measurement."""
    import pandas as pd

    rows = [row for path in paths for row in read_json(path)["metrics"]]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values([*RUN_COLUMNS, "stage", "dataset", "metric"], na_position="first", ignore_index=True)


def read_csv(path: Path | str) -> pd.DataFrame:
    """metrics.csv as a frame; UserError if a column is missing."""
    import pandas as pd

    frame = pd.read_csv(path, keep_default_na=True)
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise UserError(f"{path}: not a metrics table, it lacks the columns {', '.join(missing)}.")
    for column in ("role", "label", "dataset"):
        frame[column] = frame[column].fillna("")
    return frame


def load_metrics(paths: Iterable[Path | str]) -> pd.DataFrame:
    """The measurements in `paths`: JSON files, or one metrics.csv (of an archive, or made before)."""
    files = [str(path) for path in paths]
    return read_csv(files[0]) if len(files) == 1 and files[0].endswith(".csv") else collect(files)


def write_csv(path: Path | str, frame: pd.DataFrame) -> None:
    """Write `frame` as CSV, atomically, with numbers in full."""
    write_text(path, frame.to_csv(index=False))
