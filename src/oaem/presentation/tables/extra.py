"""Tables that the paper does not print: every text and time, severity, the checkpoint's choice, the running text."""

from __future__ import annotations

from oaem.presentation.tables.cells import Cell, Column, Layout, Row, Source, derive
from oaem.presentation.tables.makers import measured, perplexity, quantization_time, task
from oaem.presentation.tables.models import STAGES, layers_rho
from oaem.presentation.view import INIT_LABELS, Slot, View

ROLES = ("in_domain", "near", "far")
_SLOT_LABELS = ("model", "geometry", "beam", "epochs")
_PROSE = {"q_time": "quantization", "lambada_acc": "pre_pv", "lambada_ppl": "pre_pv", "c4": "post_pv"}


def severity(view: View) -> Layout:
    """How much greedy loses to OA-EM at every model and geometry, beside the rho of their layers."""
    columns = (
        Column("rho_min", "rho, smallest layer"),
        Column("rho_max", "rho, largest layer"),
        Column("pre_ratio", "Greedy / OA-EM before PV", 3, ratio=True),
        Column("post_ratio", "Greedy / OA-EM after PV", 3, ratio=True),
    )
    rows = []
    for key in view.model_keys:
        for geometry in view.geometries(key):
            slot = Slot(key, view.config.models[key].label, geometry, view.standard(key, geometry))
            cells = {"rho_min": layers_rho(view, slot, min), "rho_max": layers_rho(view, slot, max)}
            for when, stage in STAGES.items():
                pair = [perplexity(view, slot, init, stage, "far") for init in INIT_LABELS]
                cells[f"{when}_ratio"] = derive(lambda greedy, ours: greedy / ours, *pair)
            rows.append(Row({"model": slot.label, "geometry": geometry.name}, cells))
    return Layout("severity", "", ("model", "geometry"), columns, tuple(rows))


def selection(view: View) -> Layout:
    """Far-domain perplexity after PV-tuning by the way in which the checkpoint is chosen."""
    stages = {
        "post_pv": "Best on test (paper)",
        "post_pv_validation": "Best on validation",
        "post_pv_last": "Last epoch",
    }
    rows = []
    for slot in _slots(view):
        for init, label in INIT_LABELS.items():
            cells = {stage: perplexity(view, slot, init, stage, "far") for stage in stages}
            rows.append(Row({**_labels(slot), "init": label}, cells))
    columns = tuple(Column(stage, header) for stage, header in stages.items())
    return Layout("selection", "", (*_SLOT_LABELS, "init"), columns, tuple(rows))


def headline(view: View) -> Layout:
    """Greedy against OA-EM on every text of the grid, for each search point and stage, beside the unquantised model."""
    sets = view.config.evaluation.perplexity
    keys = [key for role in ROLES for key, chosen in sets.items() if chosen.role == role]
    stages = {"pre_pv": "before PV", **({"post_pv": "after PV"} if view.has_pv else {})}
    rows = []
    for slot in _slots(view):
        for stage, words in stages.items():
            for key in keys:
                cells = {"fp16": Cell({None: (Source(slot.model, "fp16", "perplexity", key, "perplexity"),)})}
                for init in view.inits:
                    cells[init] = measured(view, slot, init, stage, "perplexity", key, "perplexity")
                cells["ratio"] = derive(lambda greedy, ours: greedy / ours, cells["greedy"], cells["oaem"])
                rows.append(
                    Row({**_labels(slot), "stage": words, "text": sets[key].label, "role": sets[key].role}, cells)
                )
    columns = (
        Column("fp16", "Unquantised"),
        *(Column(init, label) for init, label in view.inits.items()),
        Column("ratio", "Ratio", 3, ratio=True),
    )
    return Layout("headline", "", (*_SLOT_LABELS, "stage", "text", "role"), columns, tuple(rows))


def times(view: View) -> Layout:
    """Compute seconds of quantisation and of PV-tuning for every search point."""
    headers = {"quantization": "Quantisation", "pv_tuning": "PV-tuning"}
    stages = [stage for stage in headers if stage == "quantization" or view.has_pv]
    columns = [
        Column(f"{stage}_{init}", f"{headers[stage]}: {label}", 1, unit="seconds")
        for stage in stages
        for init, label in view.inits.items()
    ]
    rows = []
    for slot in _slots(view):
        cells = {
            f"{stage}_{init}": measured(view, slot, init, stage, "time", "total", "seconds")
            for stage in stages
            for init in view.inits
        }
        rows.append(Row(_labels(slot), cells))
    return Layout("times", "", _SLOT_LABELS, tuple(columns), tuple(rows))


def _slots(view: View) -> list[Slot]:
    """Every model, geometry and search point of the grid."""
    return [
        Slot(key, view.config.models[key].label, geometry, point)
        for key in view.model_keys
        for geometry in view.geometries(key)
        for point in view.points(key, geometry)
    ]


def _labels(slot: Slot) -> dict[str, str | int | None]:
    beam, epochs = slot.point or (None, None)
    geometry = slot.geometry.name if slot.geometry else None
    return {"model": slot.label, "geometry": geometry, "beam": beam, "epochs": epochs}


def prose(view: View) -> Layout:
    """Numbers of the running text alone: times, LAMBADA and C4 at the higher rate (section 5.1, appendix A)."""
    slot = view.at_rate(0, "high")
    rows = []
    for quantity, stage in _PROSE.items():
        for init, label in INIT_LABELS.items():
            labels: dict[str, str | int | None] = {"quantity": quantity, "stage": stage, "init": label}
            rows.append(Row(labels, {"value": _prose(view, slot, init, quantity)}))
    return Layout("prose", slot.subject, ("quantity", "stage", "init"), (Column("value", "Value", 3),), tuple(rows))


def _prose(view: View, slot: Slot, init: str, quantity: str) -> Cell:
    if quantity == "q_time":
        return derive(lambda seconds: seconds / 60, quantization_time(view, slot, init))
    if quantity == "c4":
        return perplexity(view, slot, init, "post_pv", "in_domain", "c4_new")
    metric = {"lambada_acc": "acc", "lambada_ppl": "perplexity"}[quantity]
    return task(view, slot, init, "pre_pv", "lambada_openai", metric)
