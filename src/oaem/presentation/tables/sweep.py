"""The table of rho at one bit rate: what the paper does not have, since its two values of rho differ in bit rate."""

from __future__ import annotations

from statistics import geometric_mean

from oaem.presentation.tables.cells import Cell, Column, Layout, Row, Source, average, derive
from oaem.presentation.tables.extra import ROLES
from oaem.presentation.tables.makers import layer_statistic, measured
from oaem.presentation.tables.models import layers_rho
from oaem.presentation.view import INIT_LABELS, Slot, View

LABELS = ("model", "rate", "geometry", "beam", "epochs", "stage", "text")
TUNED = {"pre_pv": "before PV", "post_pv": "after PV"}
COLUMNS = (
    Column("rho_min", "rho, smallest layer", significant=True),
    Column("rho", "rho, geometric mean", significant=True),
    Column("rho_max", "rho, largest layer", significant=True),
    Column("true_bits", "Bits with codebooks and scales"),
    *(Column(f"error_{init}", f"Layer error: {label}", 4) for init, label in INIT_LABELS.items()),
    *(Column(init, label) for init, label in INIT_LABELS.items()),
    Column("ratio", "Ratio", 3, ratio=True),
)


def rho_sweep(view: View) -> Layout:
    """Greedy against OA-EM over the geometries of one nominal rate, text by text, from the smallest rho upwards."""
    rows = [row for slots in view.sweeps() for slot in slots for row in _rows(view, slot)]
    if not rows:
        absent = Cell(absent="no three geometries of one model at one rate and search point")
        labels: dict[str, str | int | None] = {**dict.fromkeys(LABELS), "model": view.model(0).label}
        rows = [Row(labels, {column.key: absent for column in COLUMNS})]
    return Layout("rho_sweep", "", LABELS, COLUMNS, tuple(rows))


def _rows(view: View, slot: Slot) -> list[Row]:
    assert slot.geometry is not None and slot.point is not None  # noqa: S101  every slot of a sweep has both
    sets = view.config.evaluation.perplexity
    keys = [key for role in ROLES for key, chosen in sets.items() if chosen.role == role]
    beam, epochs = slot.point
    where: dict[str, str | int | None] = {"model": slot.label, "rate": slot.rate, "geometry": slot.geometry.name}
    where |= {"beam": beam, "epochs": epochs}
    layers = _layers(view, slot)
    rows = []
    for stage, words in TUNED.items():
        if stage == "post_pv" and not view.has_pv:
            continue
        for key in keys:
            pair = {init: measured(view, slot, init, stage, "perplexity", key, "perplexity") for init in INIT_LABELS}
            ratio = derive(lambda greedy, ours: greedy / ours, *pair.values())
            labels = {**where, "stage": words, "text": sets[key].label}
            rows.append(Row(labels, {**layers, **pair, "ratio": ratio}))
    return rows


def _layers(view: View, slot: Slot) -> dict[str, Cell]:
    """What a geometry's layers are like, whatever the text: rho, true bits and the mean relative error."""
    runs = {init: view.seeded(slot, init) for init in INIT_LABELS}
    first = next(run for found in runs.values() for run in found)
    cells = {
        "rho_min": layers_rho(view, slot, min),
        "rho": layers_rho(view, slot, geometric_mean),
        "rho_max": layers_rho(view, slot, max),
        "true_bits": Cell({None: (Source(first, "layers", "layers", "all", "true_bits"),)}),
    }
    for init, found in runs.items():
        sources: dict[int | None, tuple[Source, ...]] = {
            run.seed: (layer_statistic(run, "relative_error"),) for run in found
        }
        absent = "" if found else f"no such run with {init}"
        cells[f"error_{init}"] = Cell(sources, average, absent)
    return cells
