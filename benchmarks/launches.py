"""What small layers and blocks wait for: launches. Before and after, on one GPU in one run.

    python benchmarks/launches.py --output benchmarks/out/launches.json [--seeds 42 43 44] [--sequences 128]

"Before" launches codebook steps one by one, with torch's Adam, and tunes a block by the operations of torch and
transformers; "after" is what a run does. Three things are timed: 100 codebook steps of an epoch, a step of block tuning
on the block of SmolLM2-135M, and a whole such block by the calls of the real rules (random weights, 1024 tokens a
sequence, b=8, at most 100 epochs under the rule of one percent, block tuning of five passes), for each seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from end_to_end import make_model, quantise_blocks
from run import STEPS, random_layer
from shapes import GEOMETRY, MODELS, Stopwatch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional
from tuning import make_problem, quantise, seconds_a_step, tuned_beside_plain

from oaem.calibration.sequential import SequentialJob
from oaem.config.grid import Run
from oaem.config.settings import BlockTuningSettings, CodebookSettings, LayerSettings
from oaem.models.families import family_of
from oaem.models.load import load_config
from oaem.numerics.fast_paths import plain_paths
from oaem.quantization.block_tuning import launcher_of, tune_block
from oaem.quantization.codebook_steps import adam_steps, layer_optimizer
from oaem.quantization.kernels.cuda import mixed_precision
from oaem.quantization.layer_loss import layer_loss
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.seeds import generator

MODEL, WINDOW = "embedded", 1024
SHAPES = [(192, 576), (576, 576), (1536, 576), (576, 1536), (3072, 3072)]


def torchs_rms_norm(inputs: Tensor, weight: Tensor, epsilon: float, offset: int) -> Tensor:
    """torch's own, in float32, and the cast to bfloat16."""
    return functional.rms_norm(inputs.float(), weight.shape, offset + weight if offset else weight, epsilon).bfloat16()


@contextmanager
def before() -> Iterator[None]:
    """Codebook steps and block tuning without what saves launches."""
    with (
        plain_paths(adam_steps),
        patch.object(mixed_precision, "fused_rotary", lambda block: nullcontext()),
        patch.object(mixed_precision, "gate_activation", lambda module: None),
        patch.object(mixed_precision, "rms_norm", torchs_rms_norm),
        patch.object(mixed_precision, "SHARING", ()),
    ):
        yield


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {"before": before, "after": nullcontext}


def time_codebook_steps(out: int, columns: int, device: torch.device, watch: Stopwatch) -> dict[str, Any]:
    """100 steps on codes that are prepared already, and the loss in float32 after the first 100."""
    layer = random_layer(out, columns, device)
    size = GEOMETRY.codebook_size
    oracle = layer_loss.oracle(layer.weight, layer.hessian, layer.codes, size)
    problem = layer_loss(layer.weight, layer.hessian, layer.codes, size)
    found: dict[str, Any] = {"phase": "codebook_steps", "steps": STEPS, "out": out, "in": columns}
    for name, way in WAYS.items():
        codebooks, row_scales = layer.codebooks.clone(), layer.row_scales.clone()
        optimizer = layer_optimizer(codebooks, row_scales, CodebookSettings())
        epoch = partial(adam_steps, problem, codebooks, row_scales, optimizer, STEPS, lambda loss: True)
        with way():
            epoch()
            found[f"{name}_loss"] = float(oracle.value(codebooks, row_scales)[0])
            found[f"{name}_seconds"] = watch.median(epoch, 5)
    return found


def time_tuning_step(device: torch.device, watch: Stopwatch) -> dict[str, Any]:
    """A step with every linear quantised: seconds, kernels on the device, and what a tuning reaches."""
    block, problem = make_problem(MODELS[MODEL], device, WINDOW)
    quantise(block)
    found: dict[str, Any] = {"phase": "block_tuning", "tokens": WINDOW}
    for name, way in WAYS.items():
        with way():
            found[name] = {
                "seconds_a_step": seconds_a_step(copy.deepcopy(block), problem, watch),
                "kernels_a_step": kernels_a_step(copy.deepcopy(block), problem),
                **tuned_beside_plain(block, problem, watch),
            }
    return found


def kernels_a_step(block: torch.nn.Module, problem: tuple[Tensor, Tensor, dict[str, Any]], steps: int = 8) -> float:
    """Kernels, copies and fills that a step launches when nothing is recorded."""
    inputs, targets, arguments = problem
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]

    def tune() -> None:
        tune_block(block, inputs[:steps], targets[:steps], arguments, BlockTuningSettings(epochs=1), 0)

    with plain_paths(launcher_of):
        tune()
        with torch.profiler.profile(activities=activities) as profile:
            tune()
    # torch also marks the optimiser's whole step on the device's line.
    work = [event for event in profile.events() if event.device_type == DeviceType.CUDA and "#" not in event.name]
    return len(work) / steps


def time_blocks(seeds: list[int], sequences: int, device: str, place: Path, keep: Callable[[Any], None]) -> None:
    """A whole block each way for each seed, after a short one that warms up; `keep` is given each result."""
    folder = place / "model"
    make_model(MODEL, folder, device, 2)
    config = load_config(folder)
    tokens = torch.randint(
        config.vocab_size, (sequences, WINDOW), generator=generator(0, "launches"), dtype=torch.int32
    )
    for seed, few in [(seeds[0], True), *((seed, False) for seed in seeds)]:
        for name, way in WAYS.items():
            job = SequentialJob(
                run=Run(MODEL, GEOMETRY, "oaem", 8, 100, seed), model_folder=folder, family=family_of(config),
                layer=LayerSettings(), tuning=BlockTuningSettings(), dtype=torch.bfloat16, device=device,
                fingerprint="benchmark",
            )  # fmt: skip
            with way():
                (measured,) = quantise_blocks(job, tokens[:4] if few else tokens, 1, place / f"{name}-{seed}-{few}")
            if not few:
                keep({"phase": "block", "way": name, "seed": seed, "sequences": sequences, **measured})


def main(arguments: list[str]) -> None:
    """Run everything and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--sequences", type=int, default=128)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("launches.py compares what a CUDA device does: there is none here.")
    device = torch.device("cuda:0")
    watch = Stopwatch(device)
    report: dict[str, Any] = {"provenance": collect(str(device)), "geometry": GEOMETRY.name, "results": []}

    def keep(result: dict[str, Any]) -> None:
        print(json.dumps(result), flush=True)
        report["results"].append(result)
        write_json(options.output, report)

    for shape in SHAPES:
        keep(time_codebook_steps(*shape, device, watch))
    keep(time_tuning_step(device, watch))
    place = Path(tempfile.mkdtemp(prefix="oaem-benchmark-"))
    try:
        time_blocks(options.seeds, options.sequences, str(device), place, keep)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1:])
