"""Every table of the paper: ours, the paper's numbers and the difference, from metrics.csv and the folder `paper/`.

Columns of a built table: the row labels; then for each numeric column NAME

    NAME_ours         our value, the mean over seeds
    NAME_std          only if the grid has several seeds: the sample standard deviation over them
    NAME_low, _high   the same, for ratios: the 95 % t interval of their mean, both on logarithms, paired by seed
    NAME_paper        what the paper reports; empty if the cell is lost or this grid is not the paper's
    NAME_difference   ours - paper

and last `missing`, which says why cells are empty: "NAME: not in this grid (reason)" or "NAME: not run". Q-time carries
its unit in the name (`q_time_h`, or `q_time_min` outside the paper's grid while it stays below two hours).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.config.grid import Run
from oaem.config.schema import Config
from oaem.errors import UserError
from oaem.presentation.claims import reported
from oaem.presentation.spread import ratio_spread
from oaem.presentation.tables.cells import EVERY, NOT_APPLICABLE, Cell, Column, Layout, Number, Source
from oaem.presentation.tables.layouts import EXTRA, TABLES, layout
from oaem.presentation.view import View

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXTRA", "TABLES", "Measurements", "Table", "Value", "build", "evaluate_cell", "fill"]
SMALL_TIME = 2 * 3600.0
NOT_IN_GRID = "not in this grid"
NOT_RUN = "not run"
KEY = ("geometry", "init", "beam_width", "max_epochs", "seed")
_ROUND = 6  # decimals (or significant digits) kept in files: far below any printed digit, far above summation noise


@dataclass(frozen=True)
class Value:
    """A filled cell; `missing` says why `ours` is None.

    `numbers` has one a seed; `low` and `high` are the interval of a ratio.
    """

    ours: Number | None = None
    std: float | None = None
    paper: Number | None = None
    missing: str = ""
    numbers: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours - paper, where both are numbers."""
        if isinstance(self.ours, (int, float)) and isinstance(self.paper, (int, float)):
            return self.ours - self.paper
        return None


@dataclass(frozen=True)
class Table:
    """A layout with its numbers, row by row and by column key."""

    layout: Layout
    columns: tuple[Column, ...]
    values: tuple[dict[str, Value], ...]
    many_seeds: bool = False

    def rows(self) -> Iterator[tuple[dict[str, str | int | None], dict[str, Value]]]:
        """Labels and values of each row."""
        for row, values in zip(self.layout.rows, self.values, strict=True):
            yield row.labels, values

    def frame(self) -> pd.DataFrame:
        """The table as it is written; see the head of this module."""
        import pandas as pd

        records = [self._record(labels, values) for labels, values in self.rows()]
        frame = pd.DataFrame(records, columns=self._names())
        for label in {"beam", "epochs"} & set(self.layout.labels):
            frame[label] = frame[label].astype("Int64")
        return frame

    def _suffixes(self, column: Column) -> list[str]:
        if column.unit == "text":
            return ["ours", "paper"]
        spread = ["std", *(["low", "high"] if column.ratio else [])] if self.many_seeds else []
        return ["ours", *spread, "paper", "difference"]

    def _names(self) -> list[str]:
        numeric = [f"{column.name}_{suffix}" for column in self.columns for suffix in self._suffixes(column)]
        return [*self.layout.labels, *numeric, "missing"]

    def _record(self, labels: dict[str, str | int | None], values: dict[str, Value]) -> dict[str, Any]:
        record: dict[str, Any] = dict(labels)
        notes = []
        for column in self.columns:
            value = values[column.key]
            for suffix in self._suffixes(column):
                number = getattr(value, suffix)
                record[f"{column.name}_{suffix}"] = _kept(number, column) if isinstance(number, float) else number
            if value.missing and value.missing != NOT_APPLICABLE:
                notes.append(f"{column.name}: {value.missing}")
        return record | {"missing": "; ".join(notes)}


class Measurements:
    """metrics.csv, addressable by source."""

    def __init__(self, metrics: pd.DataFrame) -> None:
        self._values: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in metrics.to_dict("records"):
            key = (row["model"], *(_known(row[name]) for name in KEY))
            where = (*key, row["stage"], row["metric"])
            known = self._values.setdefault(where, {})
            value = float(row["value"])
            if known.setdefault(row["dataset"], value) != value:
                raise UserError(
                    f"metrics: two different values of {row['metric']} on {row['dataset']} at stage {row['stage']} for "
                    f"{key}: {known[row['dataset']]} and {value}. Keep one of the files they come from."
                )

    def find(self, source: Source) -> list[float]:
        """The values of a source: one, every dataset's, or none if it was not run."""
        target = source.target
        key: tuple[Any, ...] = (target, None, None, None, None, None)
        if isinstance(target, Run):
            key = (target.model, target.geometry.name, target.init, target.beam_width, target.max_epochs, target.seed)
        found = self._values.get((*key, source.stage, source.metric), {})
        if source.dataset == EVERY:
            return list(found.values())
        return [found[source.dataset]] if source.dataset in found else []


def _kept(number: float, column: Column) -> float:
    return float(f"{number:.{_ROUND}g}") if column.significant else round(number, _ROUND)


def _known(value: Any) -> Any:
    """A run's key with what a CSV makes of it undone: 4.0 is 4, nan is None."""
    if value is None or value != value:
        return None
    return value if isinstance(value, str) else int(value)


def build(name: str, metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> pd.DataFrame:
    """The table `name` (rho, table1 to table16, or an extra one) as a frame; UserError if there is no such table."""
    return fill(name, Measurements(metrics), config, paper_dir).frame()


def fill(
    name: str, measurements: Measurements, config: Config, paper_dir: Path | str, seed: int | None = None
) -> Table:
    """The table `name` with its numbers, before it is flattened for a file; with `seed` as if no other had been run."""
    view = View(config)
    chosen = layout(name, config)
    values = []
    for row in chosen.rows:
        cells = row.cells if seed is None else {key: cell.of_seed(seed) for key, cell in row.cells.items()}
        filled = {key: evaluate_cell(cell, measurements) for key, cell in cells.items()}
        for column in chosen.columns:
            if column.ratio:
                filled[column.key] = _paired(filled[column.key])
        if view.is_paper:
            for key, value in filled.items():
                filled[key] = replace(value, paper=reported.value(paper_dir, name, row.labels, key))
        values.append(filled)
    columns = chosen.columns
    for column in columns:
        if column.unit == "seconds":
            columns = _with_unit(columns, column, values, view.is_paper, seed is None)
    return Table(chosen, columns, tuple(values), view.many_seeds)


def evaluate_cell(cell: Cell, measurements: Measurements) -> Value:
    """The value of a cell: mean over seeds, or why there is none."""
    if cell.constant is not None:
        return Value(cell.constant)
    if cell.absent:
        reason = cell.absent if cell.absent == NOT_APPLICABLE else f"{NOT_IN_GRID} ({cell.absent})"
        return Value(missing=reason)
    numbers: list[Number] = []
    for sources in cell.sources.values():
        found = [measurements.find(source) for source in sources]
        if all(found):
            numbers.append(cell.combine([value for values in found for value in values]))
    lacking = len(cell.sources) - len(numbers)
    if not numbers:
        return Value(missing=NOT_RUN)
    partly = f"{NOT_RUN} ({lacking} of {len(cell.sources)} seeds)" if lacking else ""
    real = [number for number in numbers if not isinstance(number, str)]
    if not real:
        return Value(numbers[0], missing=partly)
    std = statistics.stdev(real) if len(real) > 1 else None
    return Value(statistics.fmean(real), std, missing=partly, numbers=tuple(real))


def _paired(value: Value) -> Value:
    """A ratio's value as its seeds give it together; with one seed or none as it is."""
    if len(value.numbers) < 2:
        return value
    seeds = ratio_spread(value.numbers)
    return replace(value, ours=seeds.mean, low=seeds.low, high=seeds.high)


def _with_unit(
    columns: tuple[Column, ...], column: Column, values: list[dict[str, Value]], is_paper: bool, whole: bool
) -> tuple[Column, ...]:
    """Turn a column of seconds into hours (the paper's unit) or, while all of it is small, minutes, in place.

    A table of one seed alone always has minutes, so that seeds compare.
    """
    known = [ours for row in values if isinstance(ours := row[column.key].ours, float)]
    unit, seconds = ("h", 3600.0) if is_paper or (whole and max(known, default=0.0) >= SMALL_TIME) else ("min", 60.0)
    for row in values:
        value = row[column.key]
        ours = value.ours / seconds if isinstance(value.ours, float) else value.ours
        std = None if value.std is None else value.std / seconds
        row[column.key] = replace(value, ours=ours, std=std)
    named = replace(column, slug=f"{column.key}_{unit}", header=f"{column.header} ({unit})")
    return tuple(named if each is column else each for each in columns)
