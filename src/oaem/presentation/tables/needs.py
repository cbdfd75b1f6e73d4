"""Which measurements a table, a figure or the whole report takes, so that a workflow can ask for exactly those."""

from __future__ import annotations

from collections.abc import Iterable

from oaem.config.grid import Run
from oaem.config.schema import Config
from oaem.presentation.tables.cells import Kind
from oaem.presentation.tables.layouts import EXTRA, TABLES, layout

Need = tuple[Run | str, str, Kind]


def needs(name: str, config: Config) -> list[Need]:
    """The (run, or name of the unquantised model, stage, kind) whose metrics the table `name` shows, each once.

    Kinds: perplexity, downstream, time (stage quantization) and layers (stage layers). Cells that the grid cannot
    have need nothing. UserError if there is no such table.
    """
    found: dict[Need, None] = {}
    for row in layout(name, config).rows:
        for cell in row.cells.values():
            for sources in cell.sources.values():
                found |= {(source.target, source.stage, source.kind): None for source in sources}
    return list(found)


def all_needs(config: Config, names: Iterable[str] = (*TABLES, *EXTRA)) -> list[Need]:
    """The same for several tables together: claims, figures and the report take those of every table."""
    return list(dict.fromkeys(need for name in names for need in needs(name, config)))
