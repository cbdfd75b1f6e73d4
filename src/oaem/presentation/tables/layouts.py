"""The names of all tables and their layouts for a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from oaem.config.schema import Config
from oaem.errors import UserError
from oaem.presentation.tables import extra as tables_extra
from oaem.presentation.tables import models as tables_models
from oaem.presentation.tables import search as tables_search
from oaem.presentation.tables import sweep as tables_sweep
from oaem.presentation.tables.cells import Layout
from oaem.presentation.tables.downstream import downstream
from oaem.presentation.view import View

_MAKERS: dict[str, Callable[[View], Layout]] = {
    "rho": tables_models.rho,
    "table1": tables_search.table1,
    "table2": tables_search.table2,
    "table3": tables_search.table3,
    "table4": tables_models.table4,
    "table5": tables_models.table5,
    "table6": tables_models.table6,
    **{f"table{number}": partial(downstream, name=f"table{number}") for number in (7, 8, 9, 10, 11)},
    "table12": tables_models.table12,
    "table13": partial(downstream, name="table13"),
    "table14": tables_models.table14,
    "table15": partial(downstream, name="table15"),
    "table16": tables_search.table16,
    "headline": tables_extra.headline,
    "times": tables_extra.times,
    "severity": tables_extra.severity,
    "selection": tables_extra.selection,
    "prose": tables_extra.prose,
    "rho_sweep": tables_sweep.rho_sweep,
}
TABLES = tuple(_MAKERS)[:17]
"""The paper's tables: the one of rho and Tables 1 to 16."""
EXTRA = tuple(_MAKERS)[17:]
"""Tables that the paper does not print, see `tables_extra` and `tables_sweep`."""


def layout(name: str, config: Config) -> Layout:
    """The rows, columns and cells of a table for a configuration; UserError if there is no such table."""
    if name not in _MAKERS:
        raise UserError(f"{name!r} is no table; expected one of {', '.join(_MAKERS)}.")
    return _MAKERS[name](View(config))


def shown(names: Iterable[str], config: Config) -> list[str]:
    """Of tables or figures those that a report of this grid has: all, but `rho_sweep` where there is no such sweep."""
    return [name for name in names if name != "rho_sweep" or View(config).sweeps()]
