"""Tables over rates, models and domains: 4, 5, 6, 12, 14 and the table of rho."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oaem.presentation.tables.cells import Cell, Column, Layout, Number, Row, derive
from oaem.presentation.tables.makers import domain_column, layer_statistic, perplexity, task
from oaem.presentation.view import INIT_LABELS, Slot, View

STAGES = {"pre": "pre_pv", "post": "post_pv"}
REGIMES = ("Overcomplete", "Undercomplete", "mixed")


def table4(view: View) -> Layout:
    """Far-domain perplexity before and after PV-tuning across rates and models (section 7)."""
    headers = {"pre": "Pre-PV", "post": "Post-PV"}
    columns = [
        Column(f"{when}_{init}", f"{headers[when]}: {label}") for when in STAGES for init, label in INIT_LABELS.items()
    ]
    slots = [view.at_rate(0, "high"), view.at_rate(0, "low"), *view.further_models()]
    rows = []
    for slot in slots:
        if not slot.label:
            continue  # outside the paper's grid a further model that is not there has no name to print
        cells = {
            f"{when}_{init}": perplexity(view, slot, init, stage, "far")
            for when, stage in STAGES.items()
            for init in INIT_LABELS
        }
        rows.append(Row({"model": slot.label, "rate": slot.rate}, cells))
    return Layout("table4", "", ("model", "rate"), tuple(columns), tuple(rows))


def table5(view: View) -> Layout:
    """Perplexity before PV-tuning on three domains and the ratio greedy / OA-EM (section 8)."""
    slot = view.at_rate(0, "low")
    columns = (Column("baseline", "Baseline"), Column("oaem", "OA-EM"), Column("ratio", "Ratio", ratio=True))
    rows = []
    for role, benchmark, domain in _domains(view):
        baseline, oaem = (_domain_perplexity(view, slot, init, role) for init in INIT_LABELS)
        ratio = derive(lambda greedy, ours: greedy / ours, baseline, oaem)
        cells = {"baseline": baseline, "oaem": oaem, "ratio": ratio}
        rows.append(Row({"benchmark": benchmark, "domain": domain}, cells))
    return Layout("table5", slot.subject, ("benchmark", "domain"), columns, tuple(rows))


def _domains(view: View) -> list[tuple[str, str, str]]:
    """Role, benchmark and the paper's word for the distance from the calibration text."""
    named = [("in_domain", "C4", "In-domain"), ("near", "LAMBADA", "Near-OOD"), ("far", "WikiText-2", "Far-OOD")]
    if view.is_paper:
        return named
    found = {role: view.domain(role) for role, _, _ in named}
    labels = {role: domain[1].label for role, domain in found.items() if domain is not None}
    return [(role, labels.get(role, ""), word) for role, _, word in named]


def _domain_perplexity(view: View, slot: Slot, init: str, role: str) -> Cell:
    # The paper's near domain is the LAMBADA perplexity that lm-eval reports: of the last word, not of all tokens.
    if role == "near" and (view.is_paper or view.domain("near") is None):
        return task(view, slot, init, "pre_pv", "lambada_openai", "perplexity")
    return perplexity(view, slot, init, "pre_pv", role, "c4" if role == "in_domain" else "")


def table6(view: View) -> Layout:
    """Perplexity at the higher rate before PV-tuning (appendix A)."""
    slot = view.at_rate(0, "high")
    columns = (domain_column(view, "wiki2", "Wiki-2", "far"), domain_column(view, "c4", "C4", "in_domain", "c4_new"))
    rows = []
    shown = (("FP16", "fp16", "fp16"), ("Baseline", "greedy", "pre_pv"), ("+ OA-EM", "oaem", "pre_pv"))
    for label, init, stage in shown:
        cells = {
            "wiki2": perplexity(view, slot, init, stage, "far"),
            "c4": perplexity(view, slot, init, stage, "in_domain", "c4_new"),
        }
        rows.append(Row({"init": label}, cells))
    return Layout("table6", slot.subject, ("init",), columns, tuple(rows))


def _before_and_after(view: View, name: str, index: int) -> Layout:
    slot = view.at_rate(index, "low")
    # The paper measured C4 in two variants: `c4` before PV-tuning and `c4_new` after it.
    variants = {"pre": "c4", "post": "c4_new"}
    headers = {"pre": "Before PV: ", "post": "After PV: "}
    columns, rows = [], []
    for when in STAGES:
        columns.append(domain_column(view, f"{when}_wiki2", f"{headers[when]}Wiki-2", "far"))
        columns.append(domain_column(view, f"{when}_c4", f"{headers[when]}C4", "in_domain", variants[when]))
    for init, label in INIT_LABELS.items():
        cells: dict[str, Cell] = {}
        for when, stage in STAGES.items():
            cells[f"{when}_wiki2"] = perplexity(view, slot, init, stage, "far")
            cells[f"{when}_c4"] = perplexity(view, slot, init, stage, "in_domain", variants[when])
        rows.append(Row({"init": label}, cells))
    return Layout(name, slot.subject, ("init",), tuple(columns), tuple(rows), view.model(index).label)


def table12(view: View) -> Layout:
    """Perplexity of the second model before and after PV-tuning (appendix B.2)."""
    return _before_and_after(view, "table12", 1)


def table14(view: View) -> Layout:
    """Perplexity of the third model before and after PV-tuning (appendix B.3)."""
    return _before_and_after(view, "table14", 2)


def rho(view: View) -> Layout:
    """Codebooks, capacity and representational ratio by rate (section 1, the table without a number)."""
    columns = (
        Column("num_codebooks", "M", 0),
        Column("capacity", "K^M", 0),
        Column("rho_min", "rho, smallest layer", significant=True),
        Column("rho_max", "rho, largest layer", significant=True),
        Column("regime", "Regime", unit="text"),
    )
    rows = []
    for slot in _rates(view):
        geometry = slot.geometry
        assert geometry is not None  # noqa: S101  every slot of _rates has one
        cells = {
            "num_codebooks": Cell(constant=geometry.num_codebooks),
            "capacity": Cell(constant=geometry.codebook_size**geometry.num_codebooks),
            "rho_min": layers_rho(view, slot, min),
            "rho_max": layers_rho(view, slot, max),
            "regime": layers_rho(view, slot, regime),
        }
        labels: dict[str, str | int | None] = {"rate": slot.rate}
        if not view.is_paper:
            labels["geometry"] = geometry.name
        rows.append(Row(labels, cells))
    labelled = ("rate",) if view.is_paper else ("rate", "geometry")
    return Layout("rho", view.model(0).label, labelled, columns, tuple(rows))


def regime(values: Sequence[float]) -> str:
    """Overcomplete if every layer has rho < 1, undercomplete if every layer has rho > 1, else mixed."""
    if max(values) < 1:
        return REGIMES[0]
    return REGIMES[1] if min(values) > 1 else REGIMES[2]


def _rates(view: View) -> list[Slot]:
    slots = [view.at_rate(0, rate) for rate in ("high", "low")]
    if view.is_paper:
        return slots
    model = view.model(0)
    known = sorted(view.geometries(model.model), key=lambda geometry: -geometry.bits_per_parameter)
    return [Slot(model.model, model.label, geometry, view.standard(model.model, geometry)) for geometry in known]


def layers_rho(view: View, slot: Slot, combine: Callable[[Sequence[float]], Number]) -> Cell:
    """What `combine` makes of the rho of all linear layers of a slot."""
    if slot.absent:
        return Cell(absent=slot.absent)
    # rho depends on shapes alone: any one run of the geometry knows it.
    runs = [run for init in INIT_LABELS for run in view.seeded(slot, init)]
    if not runs:
        return Cell(absent="no such run")
    return Cell({None: (layer_statistic(runs[0], "rho"),)}, combine)
