"""Downstream accuracy task by task after PV-tuning: Tables 7 to 11, 13 and 15."""

from __future__ import annotations

from oaem.presentation.tables.cells import Column, Layout, Row
from oaem.presentation.tables.makers import average_accuracy, task
from oaem.presentation.view import INIT_LABELS, TASK_METRICS, Slot, View

COLUMNS = (
    Column("arc_c", "ARC-C", 3),
    Column("arc_e", "ARC-E", 3),
    Column("hellaswag", "HeSw", 3),
    Column("lambada_acc", "LAM acc", 3),
    Column("lambada_ppl", "LAM ppl"),
    Column("piqa", "PIQA", 3),
    Column("winogrande", "WiGr", 3),
    Column("avg", "Avg", 3),
)
# The tables about another model than the first, and its place in the grid.
MODELS = {"table13": 1, "table15": 2}
ACCURACIES = tuple(column for column, _ in TASK_METRICS.values())


def slots(view: View) -> dict[str, Slot]:
    """Which model, rate and search point each of these tables is about."""
    chosen = {"table7": view.at_rate(0, "high")}
    chosen |= {f"table{8 + index}": view.search_point(index) for index in range(4)}
    return chosen | {name: view.at_rate(index, "low") for name, index in MODELS.items()}


def downstream(view: View, name: str) -> Layout:
    """One of these tables."""
    slot = slots(view)[name]
    rows = []
    for init, label in INIT_LABELS.items():
        cells = {
            column: task(view, slot, init, "post_pv", known, metric) for known, (column, metric) in TASK_METRICS.items()
        }
        cells["lambada_ppl"] = task(view, slot, init, "post_pv", "lambada_openai", "perplexity")
        cells["avg"] = average_accuracy(view, slot, init)
        rows.append(Row({"init": label}, cells))
    model = view.model(MODELS[name]).label if name in MODELS else ""
    return Layout(name, slot.subject, ("init",), COLUMNS, tuple(rows), model)
