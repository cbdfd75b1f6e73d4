"""Time of a PV-tuning step at a real shape, against the matrix products that it cannot do without.

    python benchmarks/pv_step.py --output benchmarks/out/pv.json [--model llama-3.2-3b] [--window 4096]

A random model is cut to two depths and given random codes; one sequence's forward and backward pass and one optimiser
step are timed at both, which tells a block's share from that of head and embedding. The whole model is the sum, a step
of 32 sequences likewise: extrapolations, named so. The floor is the arithmetic of all products (the blocks' forward in
teacher and student, its repetition under gradient checkpointing, two more backward; the head's four; causal attention)
at the rate that a large bfloat16 product reaches in the same run. The teacher runs along, as it does where it fits.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from end_to_end import make_model
from shapes import MODELS

from oaem.calibration.artefacts import QuantizedState
from oaem.config.schema import PVTuning
from oaem.models.families import family_of
from oaem.models.load import linear_shapes, load_config
from oaem.pv.plan import Placement
from oaem.pv.trainer import PVJob, _Tuning
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.seeds import generator

DEPTHS = (2, 4)
STEP = 32  # sequences of an optimiser step in the paper


def random_state(folder: Path, depth: int) -> QuantizedState:
    """Random codes and codebooks for every linear of the model in `folder`."""
    draws, linears = generator(0, "codes"), {}
    for name, (rows, columns) in linear_shapes(folder).items():
        for block in range(depth):
            codes = torch.randint(256, (rows, columns // 8, 2), generator=draws, dtype=torch.int32).to(torch.uint8)
            codebooks = torch.randn(2, 256, 8, generator=draws) / (2 * columns) ** 0.5
            prefix = family_of(load_config(folder)).block_prefix(block)
            linears[f"{prefix}{name}"] = AdditiveWeight(codes, codebooks.bfloat16(), torch.ones(rows).bfloat16())
    return QuantizedState(linears, {})


def products(name: str, depth: int, window: int) -> dict[str, float]:
    """Floating-point operations of one sequence's forward and backward pass, by kind."""
    sizes = MODELS[name]
    weights = sum(out * columns * len(names) for (out, columns), names in sizes.linears().items())
    attention = 2 * window**2 * sizes.heads * sizes.head_width  # scores and values over half of the square
    return {
        "blocks": depth * 10.0 * window * weights,
        "attention": depth * (1 + 1 + 1 + 2.5) * attention,
        "head": 8.0 * window * sizes.vocabulary * sizes.hidden,
    }


def seconds(call: Any, device: str, times: int) -> float:
    """Mean time of `call` after two calls that do not count."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    for _ in range(2):
        call()
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - start) / times


def measure(name: str, depth: int, window: int, device: str, place: Path) -> dict[str, Any]:
    """One depth: seconds of a sequence and of an optimiser step, their floor, and the device's peak."""
    gc.collect()  # blocks and what they are compiled into refer to each other
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    folder = place / f"model-{depth}"
    make_model(name, folder, device, depth)
    text = {"corpus": "random", "protocol": "joined", "window": window}
    settings = PVTuning.model_validate(
        {"text": text, "validation_text": text, "test": "random", "epochs": 1, "batch_size": 1}
    )
    tokens = torch.randint(load_config(folder).vocab_size, (2, window), generator=generator(0, "pv"), dtype=torch.int32)
    job = PVJob(folder, settings, 42, torch.bfloat16, torch.bfloat16, device, "benchmark")
    state = random_state(folder, depth)
    tuning = _Tuning(job, Placement(), state, tokens, place / f"pv-{depth}", "benchmark", print)
    tuning.student.clear_gradients()
    found: dict[str, Any] = {"blocks": depth, "sequence_seconds": seconds(lambda: tuning._backward([0]), device, 5)}
    steps = iter(range(1, 100))
    found["optimizer_seconds"] = seconds(lambda: tuning.optimizer.step(next(steps)), device, 3)
    found["operations"] = products(name, depth, window)
    if device.startswith("cuda"):
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    tuning.teacher.close()
    return found


def bfloat16_rate(device: str, times: int) -> float:
    """Operations a second of a large bfloat16 product, over `times` of them; many in a row slow a hot device down."""
    size = 8192 if device.startswith("cuda") else 1024
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device, times)


def extrapolate(shallow: dict[str, Any], deep: dict[str, Any], name: str, window: int, rate: float) -> dict[str, Any]:
    """The whole model's step from two depths."""
    blocks, distance = MODELS[name].blocks, deep["blocks"] - shallow["blocks"]
    whole = {}
    for key in ("sequence_seconds", "optimizer_seconds"):
        a_block = (deep[key] - shallow[key]) / distance
        whole[key] = shallow[key] + (blocks - shallow["blocks"]) * a_block
        whole[f"{key}_a_block"] = a_block
    whole["floor_sequence_seconds"] = sum(products(name, blocks, window).values()) / rate
    whole["floor_a_block"] = (sum(deep["operations"].values()) - sum(shallow["operations"].values())) / distance / rate
    whole["step_seconds"] = STEP * whole["sequence_seconds"] + whole["optimizer_seconds"]
    whole["step_over_floor"] = whole["step_seconds"] / (STEP * whole["floor_sequence_seconds"])
    return whole


def main(arguments: list[str]) -> None:
    """Measure both depths and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="llama-3.2-3b")
    parser.add_argument("--window", type=int, default=4096)
    options = parser.parse_args(arguments)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    place = Path(tempfile.mkdtemp(prefix="oaem-benchmark-"))
    rate, sustained = bfloat16_rate(device, 10), bfloat16_rate(device, 200)
    found: dict[str, Any] = {"model": options.model, "window": options.window, "bfloat16_operations_a_second": rate}
    found["bfloat16_operations_a_second_over_200_products"] = sustained
    found["depths"] = [measure(options.model, depth, options.window, device, place) for depth in DEPTHS]
    found["whole_model_extrapolated"] = extrapolate(*found["depths"], options.model, options.window, rate)
    found["provenance"] = collect(device)
    write_json(options.output, found)
    print(json.dumps(found, indent=1))
    shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1:])
