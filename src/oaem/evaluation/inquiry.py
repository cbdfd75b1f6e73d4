"""How two runs differ, as tables of an archive: `exchange.csv` and `directions.csv` (rules/inquire.smk makes the rows).

They stand apart from metrics.csv, whose readers take every perplexity for a run's own and every layer error for one of
the walk. Both open with the columns of the run; a value is of that run, whatever it was compared with.

    exchange.csv    part        what was replaced: nothing, a kind of linear, `block 7`; of all layers' errors those in
                                `few directions`, in `other directions`, or their `size`
                    from        where it came from: the other run's initialisation, or `unquantised`
                    dataset, role, label, perplexity, stderr, n     as in metrics.csv; the text is its pre_pv's there
    directions.csv  block, linear, and the measures of `directions.error_directions`
                    sequences, window, few      the calibration tokens, and the share of directions that counts as few
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.measurements.table import RUN_COLUMNS, write_csv

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[Mapping[str, Any]]


def write_tables(target: Path, found: Mapping[str, Rows]) -> None:
    """Write the tables that there are rows for; found: rows by `layout.INQUIRIES`, in any order."""
    exchanged = [*found["exchange"], *found["error_exchange"]]
    if exchanged:
        write_csv(target / "exchange.csv", exchange_table(exchanged))
    if found["directions"]:
        write_csv(target / "directions.csv", directions_table(found["directions"]))


def exchange_table(rows: Rows) -> pd.DataFrame:
    """One row a part, text and run; rows: those of every exchange.json and error_exchange.json."""
    frame = _frame(rows, ["part", "from"], "exchanged").rename(columns={"value": "perplexity"})
    columns = [*RUN_COLUMNS, "part", "from", "dataset", "role", "label", "perplexity", "stderr", "n"]
    return frame[columns].sort_values(RUN_COLUMNS, kind="stable", ignore_index=True)


def directions_table(rows: Rows) -> pd.DataFrame:
    """One row a linear and run, every measure a column; rows: those of every directions.json."""
    facts = ["sequences", "window", "few"]
    frame = _frame(rows, facts).rename(columns={"dataset": "linear"})
    frame["block"] = frame["label"].astype(int)
    measures = list(dict.fromkeys(frame["metric"]))
    key = [*RUN_COLUMNS, "block", "linear"]
    wide = frame.pivot(index=[*key, *facts], columns="metric", values="value").reset_index()
    return wide[[*key, *measures, *facts]].sort_values(key, ignore_index=True)


def _frame(rows: Rows, facts: Sequence[str], inside: str = "") -> pd.DataFrame:
    """Rows of measurements as a frame, with these facts of their protocols, or of one key of them, as columns."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    protocols = [json.loads(protocol) for protocol in frame["protocol"]]
    if inside:
        protocols = [protocol[inside] for protocol in protocols]
    return frame.assign(**{fact: [protocol[fact] for protocol in protocols] for fact in facts})
