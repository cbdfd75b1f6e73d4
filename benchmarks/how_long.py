"""How long `make demo` will take on this machine, judged by a second of the kinds of work that it does.

python benchmarks/how_long.py [cores]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from oaem.config.schema import Config, parse
from oaem.numerics.product import matrix_product
from oaem.planning import layout
from oaem.runtime.provenance import device_name

# Processor minutes of the default grid on two cores of an AMD EPYC (Zen 4), and what the probes together, each with the
# share of its kind of work, took there with both cores busy and nothing else running: docs/log.md, 2026-11-25.
PROCESSOR_MINUTES, REFERENCE = 23.3, 0.1
SHARES = {"float32 products": 0.40, "bfloat16 products": 0.15, "passes": 0.20, "interpreter": 0.25}
Probe = Callable[[], object]


def probes() -> dict[str, Probe]:
    """A short piece of each kind of work, of sizes that the embedded model has."""
    values = torch.randn(4096, 576, generator=torch.Generator().manual_seed(0))
    weight = values[:1536].contiguous()
    narrow, narrow_weight = values.bfloat16(), weight.bfloat16()
    square = values[:576].contiguous()
    return {
        "float32 products": lambda: [matrix_product(weight, square) for _ in range(8)],
        "bfloat16 products": lambda: [functional.linear(narrow, narrow_weight) for _ in range(2)],
        "passes": lambda: [torch.softmax(values * 0.5 + values, dim=-1) for _ in range(16)],
        "interpreter": lambda: sorted({str(number): number for number in range(400_000)}),
    }


def seconds_here(repetitions: int = 5) -> dict[str, float]:
    """The least seconds that each probe takes on one thread of this process."""
    torch.set_num_threads(1)
    found = {}
    for name, probe in probes().items():
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            probe()
            times.append(time.perf_counter() - start)
        found[name] = min(times)
    return found


def slowdown(measured: dict[str, float]) -> float:
    """How many times as long as the reference machine this one takes; 1 for the reference itself."""
    return sum(share * measured[name] for name, share in SHARES.items()) / REFERENCE


def all_cores(cores: int) -> dict[str, float]:
    """`seconds_here` as a job sees it while every core has one: the mean over `cores` processes at once."""
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(seconds_here, [5] * cores))
    return {name: sum(each[name] for each in found) / cores for name in found[0]}


def share_left(config: Config) -> float:
    """The share of the grid's measurements that are not there yet."""
    files = layout.metric_files(config)
    return sum(not Path(path).exists() for path in files) / len(files)


def sentence(cores: int, factor: float, left: float) -> str:
    """What `make demo` says at its start."""
    minutes = PROCESSOR_MINUTES * factor * left / cores
    done = "" if left == 1 else f" for the {left:.0%} of the measurements that are left"
    return (
        f"{device_name('cpu')}, {cores} core{'s' if cores > 1 else ''}: the default grid will take about "
        f"{max(1, round(minutes))} minutes here{done} (measured just now: {factor:.1f} times an AMD EPYC's)."
    )


def main(arguments: list[str]) -> None:
    """Measure this machine and print the sentence; nothing if all is done."""
    cores = int(arguments[0]) if arguments else 2
    config = parse(yaml.safe_load(Path("config/config.yaml").read_text(encoding="utf-8")))
    left = share_left(config)
    if left:
        print(sentence(cores, slowdown(all_cores(cores)), left), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
