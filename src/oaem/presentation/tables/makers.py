"""The cells that tables share: perplexity, accuracy, time and layer statistics of one slot of the grid."""

from __future__ import annotations

from oaem.config.grid import Run
from oaem.presentation.tables.cells import EVERY, NOT_APPLICABLE, Cell, Column, Kind, Source, average
from oaem.presentation.view import TASK_METRICS, Slot, View

BLANK = Cell(absent=NOT_APPLICABLE)


def measured(view: View, slot: Slot, init: str, stage: str, kind: Kind, dataset: str, metric: str) -> Cell:
    """The cell of one measurement of a slot's runs with one initialisation."""
    if slot.absent:
        return Cell(absent=slot.absent)
    if stage.startswith("post_pv") and not view.has_pv:
        return Cell(absent="no PV-tuning")
    runs = view.seeded(slot, init)
    if not runs:
        return Cell(absent=f"no such run with {init}")
    return Cell({run.seed: (Source(run, stage, kind, dataset, metric),) for run in runs})


def perplexity(view: View, slot: Slot, init: str, stage: str, role: str, variant: str = "") -> Cell:
    """Perplexity on the domain of a role after `stage`; with `init` "fp16" that of the unquantised model."""
    domain = view.domain(role, variant)
    if domain is None:
        wanted = f" of variant {variant}" if view.is_paper and variant else ""
        return Cell(absent=f"no {role.replace('_', '-')} text{wanted}")
    if init != "fp16":
        return measured(view, slot, init, stage, "perplexity", domain[0], "perplexity")
    if not slot.model:
        return Cell(absent=slot.absent)
    return Cell({None: (Source(slot.model, "fp16", "perplexity", domain[0], "perplexity"),)})


def quantization_time(view: View, slot: Slot, init: str) -> Cell:
    """Q-time in seconds: the quantisation alone, without evaluation and PV-tuning."""
    return measured(view, slot, init, "quantization", "time", "total", "seconds")


def task(view: View, slot: Slot, init: str, stage: str, name: str, metric: str) -> Cell:
    """One number of one downstream task."""
    downstream = view.config.evaluation.downstream
    if slot.absent:
        return Cell(absent=slot.absent)
    if not downstream.tasks:
        return Cell(absent="no downstream tasks")
    if name not in downstream.tasks:
        return Cell(absent=f"no task {name}")
    if stage not in downstream.stages:
        return Cell(absent=f"no downstream tasks at {stage}")
    if not any(view.config.has_tasks(run) for run in view.seeded(slot, init)):
        return Cell(absent="no downstream tasks on these runs")
    return measured(view, slot, init, stage, "downstream", name, metric)


def average_accuracy(view: View, slot: Slot, init: str, stage: str = "post_pv") -> Cell:
    """ "Avg": the mean accuracy of the six tasks; outside the paper's grid, of the tasks that the grid has."""
    tasks = [name for name in TASK_METRICS if view.is_paper or name in view.config.evaluation.downstream.tasks]
    if not tasks:
        return Cell(absent=slot.absent or "no downstream tasks")
    cells = [task(view, slot, init, stage, name, TASK_METRICS[name][1]) for name in tasks]
    absent = next((cell.absent for cell in cells if cell.absent), "")
    if absent:
        return Cell(absent=absent)
    return Cell({seed: tuple(cell.sources[seed][0] for cell in cells) for seed in cells[0].sources}, average)


def layer_statistic(run: Run, metric: str) -> Source:
    """A statistic of every quantised linear layer of a run."""
    return Source(run, "layers", "layers", EVERY, metric)


def domain_column(view: View, key: str, header: str, role: str, variant: str = "") -> Column:
    """The column of a text domain: the paper's name for it, or the domain that stands there in this grid.

    A key such as `pre_wiki2` keeps its stage: in another grid its file may call it `pre_boolq`.
    """
    domain = view.domain(role, variant)
    if view.is_paper or domain is None:
        return Column(key, header)
    stage = f"{key.split('_')[0]}_" if "_" in key else ""
    before, colon, _ = header.rpartition(": ")
    return Column(key, f"{before}{colon}{domain[1].label}", slug=f"{stage}{domain[0]}")
