"""What the workflow asks the library while it plans: the inputs, parameters and resources of each rule.

A job's parameters hold just what its numbers depend on, among them a fingerprint of the code: Snakemake reruns what a
change touches, and nothing else. Nothing here imports torch, so planning is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from oaem.config.grid import Run
from oaem.config.schema import Config, Quantization
from oaem.errors import UserError
from oaem.planning import layout
from oaem.presentation import captions
from oaem.presentation.tables.layouts import layout as layout_of
from oaem.presentation.tables.layouts import shown
from oaem.presentation.tables.needs import needs
from oaem.presentation.view import View
from oaem.quantization.initialisations import ENTRY_POINTS
from oaem.runtime.devices import JOBS_PER_GPU
from oaem.runtime.provenance import plugin_version, source_fingerprint

TABLE_NAMES = [*(f"table{number}" for number in range(1, 17)), "rho", "rho_sweep"]
FIGURE_NAMES = ["seeds", "frontier", "gap", "beam", "domains", "severity_rho", "rho_sweep"]

# Memory in MB and minutes a job of each rule may take, on a CPU with the embedded model and on an 80 GB GPU with the
# paper's. A profile's set-resources overrides them; docs/cluster.md says where they come from.
RESOURCES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "model": {"mem_mb": (4000, 24000), "runtime": (15, 240)},
    "tokens": {"mem_mb": (3000, 12000), "runtime": (15, 60)},
    "calibration_stream": {"mem_mb": (3000, 32000), "runtime": (60, 60)},
    "quantize_blocks": {"mem_mb": (3000, 32000), "runtime": (120, 60)},
    "perplexity": {"mem_mb": (3000, 32000), "runtime": (60, 60)},
    "downstream": {"mem_mb": (4000, 32000), "runtime": (60, 120)},
    "layer_exchange": {"mem_mb": (4000, 48000), "runtime": (120, 120)},
    "error_directions": {"mem_mb": (4000, 32000), "runtime": (60, 60)},
    "error_exchange": {"mem_mb": (5000, 64000), "runtime": (60, 60)},
    "pv_tune": {"mem_mb": (7000, 96000), "runtime": (120, 1200)},
}


# What a model card says of quantization.inputs.
_INPUTS = {"sequential": "from the quantised blocks before it", "original": "from the unquantised model"}


def share_library(source: Path) -> None:
    """Let scripts find this library: they run in processes of their own, maybe in environments of their own."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(source)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), *others])


def share_gpus(config: Config) -> None:
    """Tell the jobs of this machine how many of them share a GPU; no number depends on it."""
    os.environ[JOBS_PER_GPU] = str(config.jobs_per_gpu)


def code(stage: str) -> str:
    """A fingerprint of the code that the numbers of `stage` depend on."""
    return source_fingerprint(stage)


def plugin(run: str) -> str | None:
    """The package and version that a run's initialisation comes from; None for a built-in one."""
    return _origin(Run.parse(run).init)


@cache  # asked for every job of a grid, and each time all installed packages would be read
def _origin(init: str) -> str | None:
    return plugin_version(ENTRY_POINTS, init)


def gpus(config: Config) -> int:
    """GPUs a computing job asks the scheduler for."""
    return 1 if config.device == "cuda" else 0


def resource(config: Config, rule: str, kind: str) -> int:
    """Memory or minutes a job of `rule` may take."""
    return RESOURCES[rule][kind][gpus(config)]


def ranks(config: Config) -> int:
    """Processes of a PV-tuning; a GPU each where there are GPUs."""
    return 1 if config.pv is None else config.pv.gpus


def tuning_memory(config: Config) -> int:
    """Memory in MB of all ranks of a PV-tuning: on GPUs a further rank reads the model once more, and that is all."""
    first = resource(config, "pv_tune", "mem_mb")
    further = resource(config, "model", "mem_mb") if gpus(config) else first
    return first + (ranks(config) - 1) * further


def table_files(config: Config) -> list[str]:
    """Every table of a grid's report, as CSV and as Markdown."""
    names = shown(TABLE_NAMES, config)
    return [f"{layout.RESULTS}/tables/{name}.{ending}" for name in names for ending in ("csv", "md")]


def figure_files(config: Config) -> list[str]:
    """Every figure of a grid's report, as SVG and as PNG."""
    names = shown(FIGURE_NAMES, config)
    return [f"{layout.RESULTS}/figures/{name}.{ending}" for name in names for ending in ("svg", "png")]


def gate(config: Config, run: str) -> list[str]:
    """What must hold before a run is quantised: nothing, or the check of the unquantised model's perplexity."""
    model = Run.parse(run).model
    return [layout.gate(model)] if config.models[model].expected_perplexity else []


def ranges(config: Config, run: str) -> list[str]:
    """The manifests of all quantisation jobs of a run."""
    return [
        layout.range_manifest(run, start, stop) for start, stop in layout.block_ranges(config, Run.parse(run).model)
    ]


def previous(config: Config, run: str, start: int) -> list[str]:
    """The job that must be done before the one that begins at block `start`; none on original inputs."""
    return [] if layout.on_original_inputs(config) else layout.previous_range(config, run, start)


def stream(config: Config, run: str) -> list[str]:
    """The calibration stream that a run's blocks read, if they read one."""
    point = Run.parse(run)
    return [layout.stream(point.model, point.seed)] if layout.reads_stream(config) else []


def calibration_tokens(run: str) -> str:
    """The calibration tokens of a run."""
    point = Run.parse(run)
    return layout.tokens(point.model, f"calibration-s{point.seed}")


def pair(run: str) -> list[str]:
    """The blocks of a run and of the greedy one that it is compared with; nothing if it is that one, which is refused
    by the job itself: what fails while jobs are planned ends in a traceback."""
    point = Run.parse(run)
    return [] if point.init == "greedy" else [layout.quantized(each.path) for each in (point, point.partner("greedy"))]


def evaluation_tokens(config: Config, subject: str) -> list[str]:
    """The evaluation tokens of a model, in the order of the configuration."""
    model = layout.subject_model(subject)
    return [layout.tokens(model, f"eval-{name}") for name in config.evaluation.perplexity]


def pv_tokens(config: Config, run: str) -> list[str]:
    """The tuning, validation and test tokens of a run, in this order."""
    if config.pv is None:
        raise UserError(f"{run}: PV-tuning is asked for, but the configuration has no section `pv`.")
    point = Run.parse(run)
    sets = (f"pv-s{point.seed}", "pv-validation", f"eval-{config.pv.test}")
    return [layout.tokens(point.model, name) for name in sets]


def model_parameters(config: Config, model: str) -> str:
    """What a model's files depend on, as JSON: not what tables call it, nor what is expected of it."""
    shown = {"paper_model", "expected_perplexity", "perplexity_tolerance", "note", "shape"}
    return _json({**config.models[model].model_dump(mode="json", exclude=shown), "label": model})


def token_parameters(config: Config, token_set: str) -> str:
    """What a token set depends on, as JSON."""
    spec, seed = layout.token_set_spec(config, token_set)
    corpus = config.corpora[spec.corpus]
    return _json({"spec": spec.model_dump(mode="json"), "corpus": corpus.model_dump(mode="json"), "seed": seed})


def quantization_parameters(config: Config) -> str:
    """What quantisation depends on beside run, model and tokens, as JSON."""
    settings = config.quantization.model_dump(mode="json", exclude={"calibration", "blocks_per_job"})
    return _json({**settings, "device": config.device, "threads": config.threads})


def stream_parameters(config: Config) -> str:
    """What the inputs of the unquantised model's blocks depend on beside model and tokens, as JSON."""
    return _json({"device": config.device, "threads": config.threads})


def perplexity_parameters(config: Config) -> str:
    """What perplexity depends on beside model and tokens, as JSON."""
    domains = {
        name: {"role": domain.role, "label": domain.label} for name, domain in config.evaluation.perplexity.items()
    }
    return _json({"domains": domains, "batch_size": config.evaluation.batch_size, "device": config.device})


def downstream_parameters(config: Config) -> str:
    """What the zero-shot tasks depend on beside the model, as JSON."""
    settings = config.evaluation.downstream.model_dump(mode="json", exclude={"stages"})
    return _json({**settings, "device": config.device})


def pv_parameters(config: Config) -> str:
    """What PV-tuning depends on beside run, model and tokens, as JSON; the same for every run of a grid."""
    if config.pv is None:
        return _json({})
    return _json({"pv": config.pv.model_dump(mode="json"), "device": config.device, "threads": config.threads})


def card_metrics(config: Config, run: str) -> list[str]:
    """The measurements that the card of an exported run shows: its own and the unquantised model's."""
    wanted = (f"{layout.RESULTS}/{run}/metrics/", f"{layout.RESULTS}/models/{Run.parse(run).model}/metrics/")
    return [path for path in layout.metric_files(config) if path.startswith(wanted)]


def card_parameters(config: Config, run: str) -> str:
    """What the card of an exported run says of its making, as JSON."""
    model = config.models[Run.parse(run).model]
    text = config.quantization.calibration
    settings = {
        "Calibration": f"{text.windows} sequences of {text.window} tokens of {text.corpus}",
        "Inputs of a block": _INPUTS[config.quantization.inputs],
        "Codebook steps": f"{config.quantization.codebooks.steps} {config.quantization.codebooks.solver} an epoch",
        "OA-EM": f"{config.quantization.oaem.rounds} rounds of {config.quantization.oaem.steps} steps",
        **_row_weights(config.quantization),
        "Block tuning": f"{config.quantization.block_tuning.epochs} epochs a group{_targets(config.quantization)}",
    }
    if model.remark:
        settings = {"Weights of the base model": model.remark, **settings}
    if config.pv is not None:
        settings["PV-tuning"] = f"{config.pv.epochs} epochs, batch {config.pv.batch_size}, LAMB {config.pv.lr:g}"
    return _json({"label": model.label, "base": model.repo or model.path or model.label, "settings": settings})


def _targets(settings: Quantization) -> str:
    """What a card says of the targets of block tuning: nothing where they are the paper's."""
    return ", to the unquantised model's outputs" if settings.block_tuning.targets == "unquantized_model" else ""


def _row_weights(settings: Quantization) -> dict[str, str]:
    """What a card says of weighted rows: nothing where none are, as in the paper."""
    steps = {"k-means": settings.kmeans.row_weights, "OA-EM": settings.oaem.row_weights}
    weighted = [step for step, weights in steps.items() if weights == "squared_scale"]
    return {"Rows by their squared scale": ", ".join(weighted)} if weighted else {}


def metric_inputs(config: Config) -> list[str]:
    """The measurements that metrics.csv unites: the grid's own, or those of archives."""
    if config.from_archive is not None:
        return [f"{folder}/metrics.csv" for folder in config.from_archive]
    return layout.metric_files(config)


def table_inputs(config: Config, table: str) -> list[str]:
    """The measurements that a table shows, as far as this grid makes them."""
    if config.from_archive is not None:
        return metric_inputs(config)
    made = set(layout.metric_files(config))
    wanted = (_metric_file(target, stage, kind) for target, stage, kind in needs(table, config))
    return [path for path in dict.fromkeys(wanted) if path in made]


def _metric_file(target: Run | str, stage: str, kind: str) -> str:
    """The file that holds what a table needs: one job measures layers and times, one all choices of an epoch."""
    subject = target.path if isinstance(target, Run) else f"models/{target}"
    if kind == "layers":
        return layout.metric(subject, "quantization", "time")
    return layout.metric(subject, "post_pv" if stage in layout.PV_STAGES else stage, kind)


def paper_files(folder: Path) -> list[str]:
    """What the paper reports, file by file."""
    return sorted(str(path) for path in folder.rglob("*") if path.suffix in (".csv", ".yaml"))


def caption(config: Config, name: str) -> str:
    """The caption of a table, a figure or a page in Snakemake's report."""
    model = layout_of(name, config).model if name in TABLE_NAMES else ""
    return captions.rst(name, model, View(config).notes())


def presentation_parameters(config: Config) -> str:
    """What tables, figures and claims need to know of the configuration, as JSON: all but how long jobs may be."""
    return _json(config.model_dump(mode="json"))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
