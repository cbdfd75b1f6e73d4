"""Tables over the search budget of one model at one rate: 1, 2, 3 and 16."""

from __future__ import annotations

from oaem.presentation.tables.cells import Cell, Column, Layout, Row, derive
from oaem.presentation.tables.makers import BLANK, average_accuracy, domain_column, perplexity, quantization_time
from oaem.presentation.view import INIT_LABELS, UNQUANTISED, Slot, View

Q_TIME = Column("q_time", "Q-time", 1, unit="seconds")
SEARCH_LABELS = ("init", "beam", "epochs")


def search_labels(init: str, slot: Slot) -> dict[str, str | int | None]:
    """The labels of a row that stands for one run."""
    beam, epochs = slot.point or (None, None)
    return {"init": INIT_LABELS.get(init, UNQUANTISED), "beam": beam, "epochs": epochs}


def table1(view: View) -> Layout:
    """Perplexity before PV-tuning and quantisation time (section 5.1)."""
    texts = (domain_column(view, "wiki2", "Wiki-2", "far"), domain_column(view, "c4", "C4", "in_domain", "c4"))
    slots = view.search_points()

    def row(slot: Slot, init: str, stage: str, time: Cell) -> Row:
        far = perplexity(view, slot, init, stage, "far")
        in_domain = perplexity(view, slot, init, stage, "in_domain", "c4")
        return Row(search_labels(init, slot), {"wiki2": far, "c4": in_domain, "q_time": time})

    rows = [row(view.model(0), "fp16", "fp16", BLANK)]
    rows += [row(slot, init, "pre_pv", quantization_time(view, slot, init)) for init in INIT_LABELS for slot in slots]
    return Layout("table1", subject_of(slots), SEARCH_LABELS, (*texts, Q_TIME), tuple(rows))


def table2(view: View) -> Layout:
    """Far-domain perplexity before and after PV-tuning, their gap, and quantisation time (section 5.2)."""
    columns = (Column("pre_pv", "Pre-PV"), Column("post_pv", "Post-PV"), Column("gap", "Gap"), Q_TIME)
    rows = []
    for slot in view.search_points():
        for init in INIT_LABELS:
            before, after = (perplexity(view, slot, init, stage, "far") for stage in ("pre_pv", "post_pv"))
            gap = derive(lambda pre, post: pre - post, before, after)
            cells = {"pre_pv": before, "post_pv": after, "gap": gap, "q_time": quantization_time(view, slot, init)}
            rows.append(Row(search_labels(init, slot), cells))
    return Layout("table2", subject_of(view.search_points()), SEARCH_LABELS, columns, tuple(rows))


def table3(view: View) -> Layout:
    """Average downstream accuracy after PV-tuning (section 6)."""
    slots = view.search_points() + view.further_models()
    columns = (Column("greedy", "Greedy", 3), Column("oaem", "OA-EM", 3))
    rows = []
    for slot in slots:
        if slot.point is None and slot.absent:
            continue  # outside the paper's grid there is no such model, and so no name to print
        beam, epochs = slot.point or (None, None)
        labels: dict[str, str | int | None] = {"model": slot.label, "beam": beam, "epochs": epochs}
        rows.append(Row(labels, {init: average_accuracy(view, slot, init) for init in INIT_LABELS}))
    return Layout("table3", subject_of(slots[:1]), ("model", "beam", "epochs"), columns, tuple(rows))


def table16(view: View) -> Layout:
    """The quality-compute frontier: perplexity and average accuracy after PV-tuning against Q-time (appendix C)."""
    columns = (domain_column(view, "wiki2", "Wiki-2", "far"), Column("avg", "Avg", 3), Q_TIME)
    rows = []
    for slot in view.search_points():
        for init in INIT_LABELS:
            after = perplexity(view, slot, init, "post_pv", "far")
            cells = {"wiki2": after, "avg": average_accuracy(view, slot, init)}
            rows.append(Row(search_labels(init, slot), {**cells, "q_time": quantization_time(view, slot, init)}))
    return Layout("table16", subject_of(view.search_points()), SEARCH_LABELS, columns, tuple(rows))


def subject_of(slots: list[Slot]) -> str:
    """Model and rate that a table over several search points is about."""
    slot = slots[0]
    return Slot(slot.model, slot.label, slot.geometry, None, slot.absent).subject
