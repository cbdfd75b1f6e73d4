"""Folders of archive/ as one: of what several hold of a run the newest one's stands, and never two makings mixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from oaem.measurements.table import COLUMNS, joined
from oaem.presentation.tables.build import NOT_RUN

if TYPE_CHECKING:
    import pandas as pd

RUN = ["model", "geometry", "beam_width", "max_epochs", "init", "seed"]
ARCHIVE = "archive"  # the column that says which folder a row is from


class Archived(NamedTuple):
    """The tables of an archive; one that no folder has is empty, without columns."""

    unquantised: pd.DataFrame
    metrics: pd.DataFrame
    exchange: pd.DataFrame
    directions: pd.DataFrame


def archived(folders: Sequence[Path], geometry: str, search: tuple[int, int]) -> Archived:
    """The runs at a geometry and a search point, and the unquantised models as each folder has them, the newest last.

    folders: the oldest first. A run's rows in every table are of the newest folder with a metric of it.
    """
    metrics, *others = (_runs(_read(folders, name), geometry, search) for name in ("metrics", "exchange", "directions"))
    if metrics.empty:
        return Archived(metrics, metrics, *others)
    newest = metrics.groupby(RUN, as_index=False)[ARCHIVE].max()
    metrics_of_runs, exchange, directions = (
        rows.merge(newest, on=[*RUN, ARCHIVE]) if len(rows) else rows for rows in (metrics, *others)
    )
    return Archived(where(metrics, stage="fp16"), metrics_of_runs, exchange, directions)


def joined_or_empty(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """As `joined` does it, for tables of which some or all may be empty."""
    import pandas as pd

    rows = [table for table in tables if len(table)]
    return joined(rows) if rows else pd.DataFrame(columns=[*COLUMNS, ARCHIVE])


def paths(names: Iterable[str]) -> str:
    """Folders of archive/ as a page names them."""
    return ", ".join(f"`archive/{name}`" for name in names) or NOT_RUN


def where(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows with these values in these columns; an empty table stays as it is."""
    for column, value in wanted.items():
        if not frame.empty:
            frame = frame[frame[column] == value]
    return frame


def layer_pairs(directions: pd.DataFrame, column: str) -> pd.DataFrame:
    """A measure of layers by initialisation: a row for each seed and layer that both have."""
    return directions.pivot(index=["seed", "block", "linear"], columns="init", values=column).dropna()


def lower_layers(pairs: pd.DataFrame) -> str:
    """In how many layers of all seeds OA-EM's error is the lower one."""
    return f"{int((pairs['oaem'] < pairs['greedy']).sum())} of {len(pairs)}"


def _read(folders: Sequence[Path], name: str) -> pd.DataFrame:
    import pandas as pd

    files = [folder / f"{name}.csv" for folder in folders]
    frames = [pd.read_csv(path).assign(**{ARCHIVE: path.parent.name}) for path in files if path.exists()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _runs(rows: pd.DataFrame, geometry: str, search: tuple[int, int]) -> pd.DataFrame:
    """These runs' rows, and those of unquantised models, which have no geometry."""
    if rows.empty:
        return rows
    ours = (rows["geometry"] == geometry) & (rows[["beam_width", "max_epochs"]] == search).all(axis=1)
    return rows[ours | rows["geometry"].isna()]
