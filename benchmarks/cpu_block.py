"""CPU seconds of one block of the embedded model by phase, on one thread, with the settings of the ten-run grid.

    python benchmarks/cpu_block.py --results results --output benchmarks/out/cpu_block.json

Needs `snakemake --cores 1 --until tokens` to have been run. Processor time, not wall time. Other work on
the machine still costs up to a fifth, through caches and memory: compare what was measured under the same load. The
first repetition, which compiles, does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from oaem.calibration.observation import BlockWalk
from oaem.calibration.sequential import SequentialJob, quantize_block
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.settings import BlockTuningSettings, LayerSettings
from oaem.corpora.tokens import read_tokens
from oaem.models.attention import use_fast_attention
from oaem.models.capture import block_arguments
from oaem.models.families import family_of
from oaem.models.load import embed_tokens, load_block, load_config
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect

MODEL, BLOCK, REPETITIONS = "smollm2-135m", 5, 3
GRID = Path("config/embedded-ten-runs.yaml")


class ProcessorClock:
    """Processor seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body of the block for `name`."""
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


@torch.no_grad()
def measure(results: Path, init: str, beam_width: int, settings: dict[str, Any]) -> dict[str, float]:
    """Median processor seconds of the phases of one block."""
    folder = results / "models" / MODEL / "hf"
    tokens, _ = read_tokens(results / "tokens" / MODEL / "calibration-s42.safetensors")
    layer = LayerSettings.model_validate({key: settings[key] for key in ("kmeans", "codebooks")})
    job = SequentialJob(
        Run(MODEL, Geometry(2, 6, 6), init, beam_width, 2, 42), folder, family_of(load_config(folder)), layer,
        BlockTuningSettings(epochs=0), torch.bfloat16, "cpu", "benchmark",
    )  # fmt: skip
    hidden = embed_tokens(folder, tokens, job.dtype, "cpu")
    found = []
    for _ in range(REPETITIONS + 1):
        clock = ProcessorClock()
        block = load_block(folder, BLOCK, job.dtype, "cpu")
        use_fast_attention(block)
        arguments = block_arguments(folder, BLOCK, hidden.shape[1], job.dtype, "cpu")
        walk = BlockWalk(block, hidden, arguments, job.family.sequential_groups, tuned=False)
        quantize_block(job, walk, BLOCK, clock)  # type: ignore[arg-type]
        with clock.phase("forward"):
            walk.outputs()
        found.append(clock.seconds)
    return {phase: statistics.median(seconds[phase] for seconds in found[1:]) for phase in found[-1]}


def main(arguments: list[str]) -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = yaml.safe_load(GRID.read_text(encoding="utf-8"))["quantization"]
    found: dict[str, Any] = {"provenance": collect("cpu"), "processor_seconds_of_a_block": {}}
    for init, beam_width in (("oaem", 1), ("oaem", 2), ("oaem", 4), ("greedy", 4)):
        seconds = measure(options.results, init, beam_width, settings)
        found["processor_seconds_of_a_block"][f"{init} b={beam_width}"] = seconds | {"all": sum(seconds.values())}
    write_json(options.output, found)
    print(json.dumps(found["processor_seconds_of_a_block"], indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
