"""`metrics.csv`: the union of all measurements, the only thing that tables, figures and claims read.

Its columns (one row a measurement):

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

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oaem.errors import UserError
from oaem.runtime.atomic import write_text

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = ["model", "geometry", "bpp", "init", "beam_width", "max_epochs", "seed"]
COLUMNS = [*RUN_COLUMNS, "stage", "dataset", "role", "label", "metric", "value", "stderr", "n", "protocol"]
IDENTITY = [*(column for column in RUN_COLUMNS if column != "bpp"), "stage", "dataset", "metric"]
"""What two rows about the same measurement agree in: the geometry gives bpp, and the dataset its role and label."""
_TEXT = ["model", "geometry", "init", "stage", "dataset", "role", "label", "metric", "protocol"]


def of_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table, sorted."""
    import pandas as pd

    return _ordered(pd.DataFrame(list(rows), columns=COLUMNS))


def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables as one, sorted; what several measured is taken from the first that has it.

    Two rows about the same in one table both stay: nobody said which is right, so who reads them must complain.
    """
    import pandas as pd

    rows = pd.concat([table.assign(_table=index) for index, table in enumerate(tables)], ignore_index=True)
    first = rows.groupby(IDENTITY, dropna=False)["_table"].transform("min")
    return _ordered(rows[rows["_table"] == first].drop(columns="_table"))


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values([*RUN_COLUMNS, "stage", "dataset", "metric"], na_position="first", ignore_index=True)


def lacking(path: Path | str) -> str:
    """The columns that the file at `path` lacks, by its first line alone; empty if it may be a metrics.csv."""
    with Path(path).open(encoding="utf-8", errors="replace", newline="") as file:
        found = next(csv.reader(file), [])
    return ", ".join(column for column in COLUMNS if column not in found)


def read_csv(path: Path | str) -> pd.DataFrame:
    """The table in the file at `path`; UserError if a column is missing or a line is damaged."""
    import pandas as pd

    if missing := lacking(path):
        raise UserError(f"{path}: not a metrics table, it lacks the columns {missing}.")
    try:
        # Told, not guessed: a text column may be empty throughout, and would be one of numbers then.
        table = pd.read_csv(path, dtype={**dict.fromkeys(_TEXT, str), "value": float})[COLUMNS]
    except ValueError as error:
        raise UserError(f"{path}: damaged: {str(error).strip()}. Get a whole copy of it.") from None
    return table.fillna(dict.fromkeys(("role", "label", "dataset"), ""))


def write_csv(path: Path | str, frame: pd.DataFrame) -> None:
    """Write `frame` as CSV, atomically, with numbers in full."""
    write_text(path, frame.to_csv(index=False))
