"""What a grid will cost: jobs, device hours by phase, disk and memory, and what is there already.

Times are estimates: the seconds that one block of the Llama 3.2 3B shape and one of the 70B shape took on one H200
(`measured.py`), scaled by the work of each phase and by a factor for the GPU. A grid on a CPU is scaled from the
embedded grid's seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from oaem.config.grid import Run
from oaem.config.schema import Config, PVTuning
from oaem.planning import layout, shapes
from oaem.planning.measured import CPU, H200, PV_STEP, Reference
from oaem.planning.shapes import Shape

# Speed against the reference's device. An H100 has an H200's arithmetic and 0.7 of its memory's speed, which some
# quarter of a block waits for; the others follow from their datasheets' matrix rates.
GPUS = {"h200": 1.0, "h100": 0.9, "a100": 0.4, "l40s": 0.3, "cpu": 1.0}
# Bytes that a beam search takes at most for its hypotheses (MEMORY in kernels/cuda/beam_search.py, which a plan cannot
# import): more rows than fit are searched in turns.
MOST_FOR_HYPOTHESES = 8 * 2**30
# How many devices the plan reckons with.
DEVICES = (1, 8, 64)
# An epoch limit is rarely reached: the paper's quantisation times come to about seven epochs a layer.
USUAL_EPOCHS = 7


def block_seconds(config: Config, run: Run, shape: Shape, reference: Reference) -> dict[str, float]:
    """Estimated seconds of one block by phase on the reference's device."""
    quantization, text = config.quantization, config.quantization.calibration
    tokens = _tokens(config) / reference.tokens
    epochs = min(run.max_epochs, USUAL_EPOCHS) / reference.epochs
    codebooks = run.geometry.num_codebooks / reference.codebooks
    tuned = reference.tuning_steps * 4096
    scale = {
        "block_tuning": 4 * quantization.block_tuning.epochs * _tokens(config) / tuned if tuned else 0.0,
        "beam_search": epochs * codebooks * run.beam_width / reference.beam_width,
        "codebook_steps": epochs * quantization.codebooks.steps / reference.steps,
        "initialisation": codebooks,
        "forward": tokens,
    }
    seconds = {phase: reference.seconds(phase, shape) * factor for phase, factor in scale.items()}
    steps = {
        "codebook_steps": len(shape.linears()) * min(run.max_epochs, USUAL_EPOCHS) * quantization.codebooks.steps,
        "block_tuning": 4 * quantization.block_tuning.epochs * (text.windows or 1),
    }
    least = dict(reference.least_seconds)
    least |= {phase: each * steps[phase] for phase, each in reference.least_seconds_a_step.items()}
    return seconds | {phase: max(seconds[phase], each) for phase, each in least.items()}


def stream_seconds(config: Config, model: str, reference: Reference) -> float:
    """Estimated seconds of a model's calibration stream: one pass over each of its blocks.

    The reference's `forward` holds one, and with block tuning one more for every sequential group.
    """
    tokens = _tokens(config) / reference.tokens
    passes = 5 if reference.tuning_steps else 1
    each = reference.seconds("forward", shapes.planned(config, model)) / passes
    return each * tokens * layout.block_count(config, model)


def tuning_step_seconds(config: Config, model: str, pv: PVTuning, gpu: str) -> float:
    """Estimated seconds of an optimiser step of PV-tuning on one GPU; by how many, the length of the text decides.

    By the products of the measured step, which are proportional to tokens and weights: a step of the 8B shape took
    17.7 s and is planned with 19.2.
    """
    share = _weights(config, model, 1) / _in_all(shapes.PAPER["Llama 3B"], 28, 1)
    tokens = pv.batch_size * pv.text.window
    speed = GPUS[gpu] / GPUS["h100"]  # which it was measured on
    return max(PV_STEP.seconds * share * tokens / PV_STEP.tokens / speed, PV_STEP.least)


def _tokens(config: Config) -> int:
    """Tokens of the calibration text."""
    text = config.quantization.calibration
    return text.window * (text.windows or 1)


def plan(config: Config, gpu: str) -> str:
    """The plan as a text; `gpu` is a key of GPUS."""
    work = remaining(config, gpu)
    lines = [f"{'run':58} {'blocks':>9} {'device h':>9}"]
    for run, done, blocks, left in work.runs:
        lines.append(f"{run.path.removeprefix('runs/'):58} {done:>4}/{blocks:<4} {left:9.2f}")
    files = layout.metric_files(config)
    measured = sum(Path(path).exists() for path in files)
    by_phase = ", ".join(f"{phase.replace('_', ' ')} {spent:.1f}" for phase, spent in work.hours.items() if spent)
    return "\n".join([
        f"{config.title}: {len(config.runs())} runs on {gpu}. Times are estimates; see src/oaem/planning/cost.py.",
        "",
        *lines,
        "",
        f"Quantisation left: {work.total:.1f} device hours ({by_phase}).",
        f"With a device for every job that can run, {work.chain:.2f} hours: the longest chain of jobs, on "
        f"{config.quantization.inputs} inputs.",
        *_by_devices(config, gpu),
        _on_top(config, gpu),
        f"Measurements: {measured} of {len(files)} files are there.",
        f"Disk: {_disk(config) / 1e9:.0f} GB for models, artefacts and activations{_stream_disk(config)}.",
        f"Device memory: {memory(config) / 1e9:.0f} GB while quantising, for the largest model.",
    ])  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What is left to quantise: (run, blocks done, blocks, device hours) a run, device hours by phase, and hours of the
    longest chain of jobs that wait for each other."""

    runs: list[tuple[Run, int, int, float]]
    hours: dict[str, float]
    chain: float

    @property
    def total(self) -> float:
        """Device hours."""
        return sum(self.hours.values())

    def wall(self, devices: int) -> float:
        """Hours on so many devices, if all can be kept busy until the longest chain is alone."""
        return max(self.total / devices, self.chain)


def remaining(config: Config, gpu: str) -> Work:
    """The work of a grid that is not done yet, on the inputs that the configuration says."""
    reference, speed = (CPU if gpu == "cpu" else H200), GPUS[gpu]
    hours: dict[str, float] = {}
    runs, chains = [], [0.0]
    for run in config.runs():
        shape, blocks = shapes.planned(config, run.model), layout.block_count(config, run.model)
        done = len(list((Path(layout.RESULTS) / run.path / "blocks").glob("????.json")))
        seconds = block_seconds(config, run, shape, reference)
        for phase, each in seconds.items():
            hours[phase] = hours.get(phase, 0.0) + each * (blocks - done) / speed / 3600
        left = sum(seconds.values()) * (blocks - done) / speed / 3600
        jobs = ceil((blocks - done) / _blocks_a_job(config, blocks)) if layout.on_original_inputs(config) else 1
        chains.append(left / max(1, jobs))
        runs.append((run, done, blocks, left))
    chain, streams = max(chains), _streams_left(config)
    if streams:
        making = [stream_seconds(config, model, reference) / speed / 3600 for model, _ in streams]
        hours["calibration stream"] = sum(making)
        chain += max(making)
    return Work(runs, hours, chain)


def _by_devices(config: Config, gpu: str) -> list[str]:
    """Hours on several devices, on inputs of either kind; nothing for a CPU, of which there is one."""
    if gpu == "cpu":
        return []
    lines = [f"{'hours of quantisation on':36}" + "".join(f"{count:>7} {gpu}" for count in DEVICES)]
    for inputs in ("sequential", "original"):
        quantization = config.quantization.model_copy(update={"inputs": inputs, "blocks_per_job": 1})
        work = remaining(config.model_copy(update={"quantization": quantization}), gpu)
        label = f"  {inputs} inputs" + (", a block a job" if inputs == "original" else "")
        lines.append(f"{label:36}" + "".join(f"{work.wall(count):>{8 + len(gpu)}.2f}" for count in DEVICES))
    return lines


def _on_top(config: Config, gpu: str) -> str:
    """What the plan says of all that is not quantisation."""
    if gpu == "cpu":
        return "PV-tuning and evaluation about double it."
    if config.pv is None or not config.pv.enabled:
        return "Evaluation comes on top."
    longest = max(tuning_step_seconds(config, model, config.pv, gpu) for model in {run.model for run in config.runs()})
    return (
        f"PV-tuning and evaluation come on top: an optimiser step of the largest model takes about {longest:.1f} s on "
        "one GPU, half of it on two (pv.gpus)."
    )


def _weights(config: Config, model: str, embeddings: int = 2) -> int:
    """Numbers in the blocks' linears and in embeddings, the head being one of them."""
    shape = shapes.planned(config, model)
    return _in_all(shape, layout.block_count(config, model), embeddings)


def _in_all(shape: Shape, blocks: int, embeddings: int) -> int:
    return shape.weights() * blocks + embeddings * shape.hidden * shape.vocabulary


def _disk(config: Config) -> float:
    total = 0.0
    for model in {run.model for run in config.runs()}:
        total += 2 * _weights(config, model)
    for run in config.runs():
        hidden = shapes.planned(config, run.model).hidden
        states = 4 if layout.tunes(config) else 1
        total += states * _weights(config, run.model) * (run.geometry.bits_per_parameter / 8 + 0.02)
        if not layout.on_original_inputs(config):
            total += 2 * hidden * _tokens(config) * 2
    return total + sum(_stream_bytes(config, model) for model, _ in _streams(config))


def _streams(config: Config) -> list[tuple[str, int]]:
    """The model and seed of each calibration stream; none where no run reads one."""
    return _streams_of(config.runs()) if layout.reads_stream(config) else []


def _streams_left(config: Config) -> list[tuple[str, int]]:
    """Those that are still to be made: a stream may be removed when all its runs are quantised."""
    waiting = _streams_of(run for run in config.runs() if not Path(layout.quantized(run.path)).exists())
    return [each for each in _streams(config) if each in waiting and not Path(layout.stream(*each)).exists()]


def _streams_of(runs: Iterable[Run]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((run.model, run.seed) for run in runs))


def _stream_bytes(config: Config, model: str) -> float:
    """Every block's inputs in two bytes a number."""
    return 2.0 * shapes.planned(config, model).hidden * _tokens(config) * layout.block_count(config, model)


def _stream_disk(config: Config) -> str:
    """What the plan says of the disk that calibration streams take, which is the larger part of it."""
    total = sum(_stream_bytes(config, model) for model, _ in _streams(config))
    return f", {total / 1e9:.0f} GB of it for calibration streams" if total else ""


def _blocks_a_job(config: Config, blocks: int) -> int:
    size = config.quantization.blocks_per_job
    return blocks if size == "all" else size


def memory(config: Config) -> float:
    """Bytes of a device while quantising, for the run that needs most: tuning a block, or searching its widest layer.

    Three times the block's activations in two bytes are there throughout: inputs, targets, outputs. Tuning holds the
    block's weights, gradients and Adam moments in four bytes each beside its own weights; a search of one layer holds
    its Hessian in float32, permuted and in three bfloat16 parts, and two lines of float32 a hypothesis. Sixteen bytes
    for each number of a Hessian also hold it in float64 with the product that is added to it.
    """
    worst = 0.0
    for run in config.runs():
        shape = shapes.planned(config, run.model)
        activations = 3 * 2 * shape.hidden * _tokens(config)
        out, width = max(shape.linears(), key=lambda sizes: sizes[1])
        hypotheses = min(MOST_FOR_HYPOTHESES, 8 * run.beam_width * out * width)
        search = 16 * width**2 + 2 * shape.weights() + hypotheses
        worst = max(worst, activations + max(20 * shape.weights(), search) + 2e9)
    return worst
