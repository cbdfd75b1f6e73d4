"""The readable form of tables and claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oaem.config.schema import Config
from oaem.presentation import captions
from oaem.presentation.claims.values import four_digits
from oaem.presentation.tables.build import NOT_IN_GRID, Measurements, Table, Value, fill
from oaem.presentation.tables.cells import NOT_APPLICABLE, Column
from oaem.presentation.view import View

if TYPE_CHECKING:
    import pandas as pd

LEGEND = "Each cell: ours (the paper's; difference). Our perplexities and times come from this grid's own runs."
LEGEND_ALONE = "The paper has no numbers for this grid: cells are ours alone."
HEADERS = {"init": "Init", "beam": "b", "epochs": "e", "model": "Model", "rate": "Rate", "geometry": "Geometry"}


def render(name: str, metrics: pd.DataFrame, config: Config, paper_dir: Path | str) -> str:
    """A table as Markdown: heading, what it is about, what it shows, its cells, and what is missing and why."""
    table = fill(name, Measurements(metrics), config, paper_dir)
    view = View(config)
    parts = [f"# {captions.heading(name, table.layout.model)}"]
    if table.layout.subject:
        parts.append(f"{table.layout.subject}.")
    parts += [captions.text(name), LEGEND if view.is_paper else LEGEND_ALONE]
    parts.append(grid(header(table), body(table)))
    gaps = missing(table)
    parts.append("Missing:\n\n" + "\n".join(f"- {line}" for line in gaps) if gaps else "Nothing is missing.")
    parts += [f"{note}." for note in view.notes()]
    return "\n\n".join(parts) + "\n"


def header(table: Table) -> list[str]:
    """The headings of a table's columns."""
    return [HEADERS.get(label, label.capitalize()) for label in table.layout.labels] + [c.header for c in table.columns]


def body(table: Table) -> list[list[str]]:
    """The cells of a table as text."""
    rows = []
    for labels, values in table.rows():
        cells = ["" if label is None else str(label) for label in labels.values()]
        rows.append(cells + [cell(values[column.key], column) for column in table.columns])
    return rows


def cell(value: Value, column: Column) -> str:
    """One cell: ours, and in brackets the paper's and the difference."""
    ours = short_reason(value.missing) if value.ours is None else digits(value.ours, column)
    ours += extent(value, column)
    if value.paper is None:
        return ours
    beside = digits(value.paper, column)
    if value.difference is not None:
        beside += f"; {value.difference:+.{column.decimals}f}"
    return f"{ours} ({beside})"


def extent(value: Value, column: Column) -> str:
    """What follows a mean over seeds: a ratio's interval, another number's standard deviation, nothing for one seed."""
    if value.low is not None and value.high is not None:
        return f" [{digits(value.low, column)} to {digits(value.high, column)}]"
    return "" if value.std is None else f" ± {digits(value.std, column)}"


def short_reason(missing: str) -> str:
    """What stands in the place of a number that is not there."""
    if missing == NOT_APPLICABLE:
        return "–"
    return NOT_IN_GRID if missing.startswith(NOT_IN_GRID) else missing


def digits(value: float | str, column: Column) -> str:
    """A number with the column's decimals, or in four digits where it has no fixed ones; text as it is."""
    if isinstance(value, str):
        return value
    return four_digits(value) if column.significant else f"{value:,.{column.decimals}f}"


def missing(table: Table) -> list[str]:
    """One line for each reason: which columns of which rows are empty because of it."""
    found: dict[str, dict[str, list[str]]] = {}
    for labels, values in table.rows():
        where = ", ".join(str(label) for label in labels.values() if label is not None)
        for column in table.columns:
            reason = values[column.key].missing
            if reason and reason != NOT_APPLICABLE:
                found.setdefault(reason, {}).setdefault(where, []).append(column.header)
    return [f"{reason}: {_places(places)}" for reason, places in found.items()]


def _places(places: dict[str, list[str]]) -> str:
    """Rows with their columns; rows that lack the same columns share them."""
    by_columns: dict[str, list[str]] = {}
    for where, columns in places.items():
        by_columns.setdefault(", ".join(columns), []).append(where)
    return "; ".join(f"{columns} of {' / '.join(rows)}" for columns, rows in by_columns.items())


def claims(frame: pd.DataFrame) -> str:
    """claims.csv as Markdown."""
    rows = []
    for row in frame.to_dict("records"):
        ours = f"undecided: {row['ours_in_words']}" if row["ours"] == "undecided" else row["ours"]
        rows.append([str(row["section"]), str(row["statement"]), str(row["paper"]), str(ours)])
    table = grid(["Section", "Statement", "On the paper's numbers", "On ours"], rows)
    return f"# {captions.heading('claims')}\n\n{captions.text('claims')}\n\n{table}\n"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
