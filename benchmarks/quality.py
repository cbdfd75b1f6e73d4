"""Does every fast path leave the model as good as the plain formulas do? Perplexity of the embedded model, both ways.

    python benchmarks/quality.py --model results/models/smollm2-135m/hf --tokens results/tokens/smollm2-135m \\
        --output benchmarks/out/quality.json [--blocks 10] [--seeds 1 2 3] [--workers 6]

For every seed and initialisation the first `--blocks` blocks are quantised twice, with the paper's steps and iterations
on the embedded calibration text: by the fast paths of the device that is there (Triton kernels, recorded bfloat16
tuning; on a CPU compiled code) and by the plain float32 formulas. Then perplexity on every domain. The runs
are processes of their own, `--workers` at a time. A difference between fast and plain means something only if it is
larger than what another seed does: `within_spread` compares the difference of the means with the range over seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oaem.calibration.artefacts import load_block_state
from oaem.calibration.sequential import SequentialJob, quantize_range, restore
from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.settings import BlockTuningSettings, LayerSettings
from oaem.corpora.tokens import read_tokens
from oaem.evaluation.perplexity import perplexity
from oaem.models.families import family_of
from oaem.models.load import load_config, load_model
from oaem.models.precision import compute_dtype
from oaem.models.skeleton import block_list
from oaem.numerics.fast_paths import plain_paths
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect

GEOMETRY = Geometry(2, 6, 6)  # 2 bits, as the embedded grid
BEAM_WIDTH, EPOCHS = 4, 2
INITIALISATIONS = ("greedy", "oaem")


@dataclass(frozen=True)
class Task:
    """One run: which path, where from."""

    model: Path
    tokens: Path
    blocks: int
    seed: int
    init: str
    fast: bool


def quantise_and_measure(task: Task) -> dict[str, Any]:
    """Perplexity by domain, the mean layer error and the seconds of one run."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    dtype = compute_dtype(task.model, device)
    family = family_of(load_config(task.model))
    job = SequentialJob(
        run=Run("smollm2-135m", GEOMETRY, task.init, BEAM_WIDTH, EPOCHS, task.seed), model_folder=task.model,
        family=family, layer=LayerSettings(), tuning=BlockTuningSettings(), dtype=dtype, device=device,
        fingerprint="benchmark",
    )  # fmt: skip
    calibration = read_tokens(next(task.tokens.glob("calibration-*.safetensors")))[0]
    model = load_model(task.model, dtype, device)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if task.fast:
            reports = quantize_range(job, calibration, 0, task.blocks, place / "blocks", place / "activations")
        else:
            with plain_paths():
                reports = quantize_range(job, calibration, 0, task.blocks, place / "blocks", place / "activations")
        seconds = time.monotonic() - began
        for index, block in enumerate(list(block_list(model, family))[: task.blocks]):
            restore(block, load_block_state(place / "blocks", index), dtype)
    errors = [linear["relative_error"] for report in reports for linear in report["linears"].values()]
    return {
        "seed": task.seed, "init": task.init, "path": "fast" if task.fast else "plain",
        "perplexity": perplexities(model, task.tokens, device), "mean_relative_error": statistics.fmean(errors),
        "seconds": seconds,
    }  # fmt: skip


def perplexities(model: Any, tokens: Path, device: str) -> dict[str, float]:
    """Perplexity on every evaluation text in the folder."""
    files = sorted(tokens.glob("eval-*.safetensors"))
    return {
        file.stem.removeprefix("eval-"): perplexity(model, read_tokens(file)[0].contiguous(), 4, device).value
        for file in files
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By initialisation and domain: means over seeds, their difference, and the range over seeds of each path."""
    rows = []
    by_seed = sorted(runs, key=lambda run: run["seed"])
    for init in INITIALISATIONS:
        paths = {
            path: [run for run in by_seed if (run["init"], run["path"]) == (init, path)] for path in ("fast", "plain")
        }
        if len(paths["fast"]) != len(paths["plain"]) or len(paths["fast"]) < 2:
            continue
        for domain in paths["fast"][0]["perplexity"]:
            values = {path: [run["perplexity"][domain] for run in found] for path, found in paths.items()}
            means = {path: statistics.fmean(found) for path, found in values.items()}
            spread = max(max(found) - min(found) for found in values.values())
            rows.append({
                "init": init, "domain": domain, **values, "fast_mean": means["fast"], "plain_mean": means["plain"],
                "difference": means["fast"] - means["plain"], "spread_over_seeds": spread,
                "within_spread": abs(means["fast"] - means["plain"]) <= spread,
            })  # fmt: skip
    return rows


def main(arguments: list[str]) -> None:
    """Run everything and write the JSON, anew after every run that ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # The plain runs take longest, so they begin.
    tasks = [
        Task(options.model, options.tokens, options.blocks, seed, init, fast)
        for fast in (False, True)
        for init in reversed(INITIALISATIONS)
        for seed in options.seeds
    ]
    unquantised = load_model(options.model, compute_dtype(options.model, device), device)
    found: dict[str, Any] = {
        "blocks": options.blocks, "geometry": GEOMETRY.name, "beam_width": BEAM_WIDTH, "epochs": EPOCHS,
        "provenance": collect(device), "unquantised": perplexities(unquantised, options.tokens, device), "runs": [],
    }  # fmt: skip
    del unquantised
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(quantise_and_measure, task) for task in tasks]):
            found["runs"].append(future.result())
            found["summary"] = summary(found["runs"])
            print(json.dumps(found["runs"][-1]), flush=True)
            write_json(options.output, found)
    for row in found["summary"]:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
