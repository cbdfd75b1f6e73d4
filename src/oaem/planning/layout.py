"""Where everything lies under the results folder, and how the grid is cut into jobs; planning needs no torch.

models/{model}/manifest.json                    the model folder hf/ beside it
tokens/{model}/{set}.safetensors                calibration-s42, eval-wikitext2, pv-s42, pv-validation
models/{model}/activations/s42/manifest.json    inputs of the unquantised model's blocks beside it, if asked for
runs/{model}/{geometry}/{init}/b8-e100/s42/     one run: blocks/, activations/ (while it is made), pv/, metrics/
models/{model}/metrics/fp16-{kind}.json         the unquantised model's measurements
metrics.csv, tables/, figures/, report.html     made from the measurements
"""

from __future__ import annotations

from pathlib import Path

from oaem.config.grid import Run
from oaem.config.schema import Config, TokenSet
from oaem.errors import UserError

RESULTS = "results"
RUN_PATTERN = r"runs/[^/]+/[^/]+/[^/]+/b\d+-e\d+/s\d+"
SUBJECT_PATTERN = rf"models/[^/]+|{RUN_PATTERN}"
# Stages after PV-tuning, measured by one job, and the state of each in the folder pv/.
PV_STAGES = {"post_pv": "best_test", "post_pv_validation": "best_validation", "post_pv_last": "last"}

# What is asked of a run and its greedy partner together, each a file beside the run's own measurements.
INQUIRIES = ("exchange", "directions", "error_exchange")


def model_manifest(model: str) -> str:
    """The file that says the model folder is complete."""
    return f"{RESULTS}/models/{model}/manifest.json"


def gate(model: str) -> str:
    """The file that says the unquantised model's perplexity is what the configuration expects."""
    return f"{RESULTS}/models/{model}/gate.json"


def tokens(model: str, token_set: str) -> str:
    """A token set of a model, by the names that `token_set_spec` knows."""
    return f"{RESULTS}/tokens/{model}/{token_set}.safetensors"


def token_set_of(file: str) -> str | None:
    """The name of the token set that a file holds; None for a file of anything else."""
    path = Path(file)
    return path.stem if path.parts[:2] == (RESULTS, "tokens") else None


def token_set_spec(config: Config, name: str) -> tuple[TokenSet, int]:
    """What a token set is cut from, and the seed it is cut with; UserError for a name that the configuration lacks."""
    kind, _, rest = name.partition("-")
    if kind == "calibration":
        return config.quantization.calibration, int(rest.removeprefix("s"))
    if kind == "eval" and rest in config.evaluation.perplexity:
        return config.evaluation.perplexity[rest].text, 0
    if kind == "pv" and config.pv is not None:
        return (config.pv.validation_text, 0) if rest == "validation" else (config.pv.text, int(rest.removeprefix("s")))
    raise UserError(f"results/tokens/…/{name}: the configuration has no such token set.")


def block_count(config: Config, model: str) -> int:
    """Transformer blocks of a model, as the configuration says."""
    blocks = config.models[model].blocks
    if blocks is None:
        raise UserError(
            f"models.{model}.blocks: say how many transformer blocks the model has; jobs are planned by it."
        )
    return blocks


def on_original_inputs(config: Config) -> bool:
    """Whether all blocks of a run are independent jobs that read the unquantised model's calibration stream."""
    return config.quantization.inputs == "original"


def reads_stream(config: Config) -> bool:
    """Whether a run's blocks need the unquantised model's calibration stream: as their inputs, or for their targets."""
    return on_original_inputs(config) or config.quantization.block_tuning.targets == "unquantized_model"


def block_ranges(config: Config, model: str) -> list[tuple[int, int]]:
    """The (start, stop) of each quantisation job of a run, in order."""
    count, size = block_count(config, model), config.quantization.blocks_per_job
    step = count if size == "all" else size
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def range_manifest(run: str, start: int, stop: int) -> str:
    """What the quantisation job of blocks `start` to `stop` - 1 writes last."""
    return f"{RESULTS}/{run}/blocks/range-{start:04d}-{stop:04d}.json"


def previous_range(config: Config, run: str, start: int) -> list[str]:
    """The job that must be done before the one that begins at block `start`; empty for the first."""
    return [range_manifest(run, *done) for done in block_ranges(config, Run.parse(run).model) if done[1] == start]


def stream(model: str, seed: int) -> str:
    """The file that says the inputs of all blocks of the unquantised model are stored beside it."""
    return f"{RESULTS}/models/{model}/activations/s{seed}/manifest.json"


def quantized(run: str) -> str:
    """The file that says all blocks of a run are there and agree."""
    return f"{RESULTS}/{run}/quantized.json"


def pv_manifest(run: str) -> str:
    """The file that says PV-tuning of a run is complete."""
    return f"{RESULTS}/{run}/pv/manifest.json"


def metric(subject: str, stage: str, kind: str) -> str:
    """A file of measurements; `subject` is a run's path or `models/{model}`."""
    return f"{RESULTS}/{subject}/metrics/{stage}-{kind}.json"


def subject_model(subject: str) -> str:
    """The model that `subject` is, or is made from."""
    return subject.split("/")[1]


def stage_state(subject: str, stage: str) -> list[str]:
    """What must be there before the model of a stage can be assembled, beside the original model."""
    if stage == "fp16":
        return []
    return [quantized(subject)] if stage == "pre_pv" else [pv_manifest(subject)]


def tunes(config: Config) -> bool:
    """Whether the configuration has PV-tuning."""
    return config.pv is not None and config.pv.enabled


def metric_files(config: Config) -> list[str]:
    """Every measurement of the grid, each once."""
    tasks = bool(config.evaluation.downstream.tasks)
    files: dict[str, None] = {}
    for model in dict.fromkeys(run.model for run in config.runs()):
        files |= dict.fromkeys(metric(f"models/{model}", "fp16", kind) for kind in _kinds(config, "fp16", tasks))
    for run in config.runs():
        tasks = config.has_tasks(run)
        files[metric(run.path, "quantization", "time")] = None
        files |= dict.fromkeys(metric(run.path, "pre_pv", kind) for kind in _kinds(config, "pre_pv", tasks))
        if tunes(config):
            files[metric(run.path, "pv_tuning", "time")] = None
            files |= dict.fromkeys(metric(run.path, "post_pv", kind) for kind in _kinds(config, "post_pv", tasks))
    return list(files)


def inquiry_files(config: Config) -> list[str]:
    """How every run differs from the greedy one of its grid point, in the grid or not, and what either is by itself.

    Of a grid of greedy runs alone the first is asked for, which the job refuses: what fails while jobs are planned ends
    in a traceback.
    """
    runs = config.runs()
    files: dict[str, None] = {}
    for run in [each for each in runs if each.init != "greedy"] or runs[:1]:
        files[metric(f"models/{run.model}", "fp16", "perplexity")] = None
        for each in (run, run.partner("greedy")):
            files |= dict.fromkeys(
                (metric(each.path, "quantization", "time"), metric(each.path, "pre_pv", "perplexity"))
            )
        files |= dict.fromkeys(f"{RESULTS}/{run.path}/metrics/{kind}.json" for kind in INQUIRIES)
    return list(files)


def _kinds(config: Config, stage: str, tasks: bool) -> list[str]:
    return ["perplexity", *(["downstream"] if tasks and stage in config.evaluation.downstream.stages else [])]
