"""What a step of block tuning spends its time on: the device's kernels, by name, on a block of a real shape.

    python benchmarks/profile_tuning.py --output benchmarks/out/profile.json [--model llama-3.2-3b] [--window 4096]

Before any linear is quantised and after all are. Kernels of one name are one line: their milliseconds and their number
a step. On a CPU it counts operations instead, to be tried out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from shapes import MODELS
from torch import nn
from torch.autograd import DeviceType
from tuning import Problem, make_problem, quantise

from oaem.config.settings import BlockTuningSettings
from oaem.quantization.block_tuning import tune_block
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect

LONGEST = 40  # lines


def profile(block: nn.Module, problem: Problem) -> dict[str, Any]:
    """Milliseconds a step on the device, in all and by kernel; the first epoch, which compiles, does not count."""
    inputs, targets, arguments = problem
    on_gpu = inputs.is_cuda
    tune_block(block, inputs, targets, arguments, BlockTuningSettings(epochs=1), 0)
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        tune_block(block, inputs, targets, arguments, BlockTuningSettings(epochs=2), 0)
    steps = 2 * len(inputs)
    kernels: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU):
            spent = event.device_time if on_gpu else event.self_cpu_time_total
            line = kernels.setdefault(event.name[:100], [0.0, 0.0])
            line[0] += spent / 1000 / steps
            line[1] += 1 / steps
    lines = sorted(kernels.items(), key=lambda line: -line[1][0])
    return {
        "milliseconds_a_step": sum(spent for _, (spent, _) in lines),
        "kernels_a_step": sum(count for _, (_, count) in lines),
        "kernels": [{"name": name, "milliseconds": spent, "number": count} for name, (spent, count) in lines[:LONGEST]],
    }


def main(arguments: list[str]) -> None:
    """Profile both stages, print the longest kernels and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="llama-3.2-3b")
    parser.add_argument("--window", type=int, default=4096)
    options = parser.parse_args(arguments)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"provenance": collect(str(device)), "model": options.model, "window": options.window}
    with torch.no_grad():
        block, problem = make_problem(MODELS[options.model], device, options.window)
        found["dense"] = profile(block, problem)
        quantise(block)
        found["quantised"] = profile(block, problem)
    for stage in ("dense", "quantised"):
        print(f"{stage}: {found[stage]['milliseconds_a_step']:.2f} ms, {found[stage]['kernels_a_step']:.0f} kernels")
        for line in found[stage]["kernels"][:20]:
            print(f"  {line['milliseconds']:8.3f} ms {line['number']:6.1f}  {line['name']}")
    write_json(options.output, found)
    print(json.dumps({"written": str(options.output)}))


if __name__ == "__main__":
    main(sys.argv[1:])
