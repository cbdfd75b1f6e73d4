"""A PV-tuning step on several GPUs against one GPU of the same machine: seconds, and memory on each.

    python benchmarks/pv_ranks.py --gpus 2 --output benchmarks/out/pv-ranks.json [--models llama-3.2-3b llama-3.1-8b]

A random model is cut to two depths and given random codes, as in pv_step.py. Then one device alone, and after it all
devices together through torchrun, make whole optimiser steps on the same number of sequences: forward and backward
pass of a rank's share, the sums of gradients, the step of what each rank owns, what it spreads. Seconds are those of
the slowest rank, bytes those of the fullest one. The whole model's seconds follow from the two depths, its bytes from
the plan of memory: extrapolations, named so. Without a GPU it runs on the CPU through gloo, to be tried out:

    python benchmarks/pv_ranks.py --gpus 2 --output out.json --models embedded --window 32 --sequences 4 --depths 1 2
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from end_to_end import make_model
from pv_step import random_state
from shapes import GEOMETRY, MODELS

from oaem.config.schema import PVTuning
from oaem.models.load import load_config
from oaem.pv.plan import ModelShape, Placement, plan_for
from oaem.pv.team import ALONE, Team, joined
from oaem.pv.trainer import PVJob, _Tuning
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.ranks import be_rank, run_ranks
from oaem.runtime.seeds import generator

WARM_UP, TIMED = 2, 4  # whole steps
# What is said of all ranks: the slowest one, but of sums, which begin with waiting for it, the one that did not wait.
PARTS: dict[str, Callable[..., float]] = {
    "step_seconds": max, "gradients_seconds": max, "sums_seconds": min, "update_seconds": max,
}  # fmt: skip


def settings_of(told: dict[str, Any]) -> PVTuning:
    """The paper's settings with this benchmark's sizes."""
    text = {"corpus": "random", "protocol": "joined", "window": told["window"]}
    values = {"text": text, "validation_text": text, "test": "random", "epochs": 1}
    return PVTuning.model_validate(values | {"batch_size": told["sequences"], "gpus": told["ranks"]})


def measure(told: dict[str, Any], device: str, team: Team) -> dict[str, Any]:
    """One rank's step: seconds in whole and in part, the device's peak, and what the plan of memory said."""
    folder, settings = Path(told["model"]), settings_of(told)
    size = (told["sequences"], told["window"])
    tokens = torch.randint(load_config(folder).vocab_size, size, generator=generator(0, "pv"), dtype=torch.int32)
    job = PVJob(folder, settings, 42, torch.bfloat16, torch.bfloat16, device, "benchmark", team=team)
    state = random_state(folder, told["blocks"])
    tuning = _Tuning(job, Placement(), state, tokens, folder.parent / "pv", "benchmark", print)
    found: dict[str, Any] = {"rank": team.rank, "blocks": told["blocks"]}
    spent = {"sums_seconds": 0.0, "update_seconds": 0.0}
    optimizer: Any = tuning.optimizer
    optimizer.collect = timed(optimizer.collect, spent, "sums_seconds", device)
    optimizer.step = timed(optimizer.step, spent, "update_seconds", device)
    step = timed(tuning._step, spent, "step_seconds", device)
    found["losses"] = [step(number) for number in range(1, 1 + WARM_UP)]
    team.wait()
    spent.update(dict.fromkeys(spent, 0.0))
    found["losses"] += [step(number) for number in range(1 + WARM_UP, 1 + WARM_UP + TIMED)]
    found |= {key: each / TIMED for key, each in spent.items()}
    found["gradients_seconds"] = found["step_seconds"] - found["sums_seconds"] - found["update_seconds"]
    found["peak_bytes"] = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    planned = plan_for(ModelShape.read(folder), GEOMETRY, settings, *size, 2, Placement())
    found["planned_device_bytes"] = planned.total("device")
    tuning.teacher.close()
    return found


def timed(call: Callable[..., Any], spent: dict[str, float], name: str, device: str) -> Callable[..., Any]:
    """`call` with its seconds, the device waited for, added to those of `name`."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)

    def counting(*arguments: Any) -> Any:
        wait()
        began = time.perf_counter()
        result = call(*arguments)
        wait()
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
        return result

    return counting


def rank(told: dict[str, Any], device: str) -> None:
    """What torchrun runs on each device."""
    if told["ranks"] == 1:
        found = measure(told, device, ALONE)
    else:
        with joined(device) as team:
            found = measure(told, device, team)
    write_json(Path(told["place"]) / f"rank-{found['rank']}.json", found)


def run(told: dict[str, Any], devices: list[str], threads: int) -> dict[str, Any]:
    """One depth on some devices: the slowest rank's seconds, the fullest one's bytes, and every rank's own."""
    place = Path(told["place"])
    ranks = len(devices)
    run_ranks("pv_ranks", {**told, "ranks": ranks}, devices, threads, place / "log")
    found = [json.loads((place / f"rank-{number}.json").read_text()) for number in range(ranks)]
    peaks = [each["peak_bytes"] for each in found if each["peak_bytes"] is not None]
    whole = {key: choice(each[key] for each in found) for key, choice in PARTS.items()}
    return {
        "blocks": told["blocks"],
        **whole,
        "peak_bytes": max(peaks, default=None),
        "planned_device_bytes": found[0]["planned_device_bytes"],
        "losses": found[0]["losses"],
        "by_rank": found,
    }


def whole_model(depths: list[dict[str, Any]], name: str, folder: Path, settings: PVTuning) -> dict[str, Any]:
    """The whole model's step from two depths, and its bytes on a device as planned with nothing offloaded."""
    shallow, deep = depths
    blocks, distance = MODELS[name].blocks, deep["blocks"] - shallow["blocks"]
    further = (blocks - shallow["blocks"]) / distance
    found = {key: shallow[key] + further * (deep[key] - shallow[key]) for key in PARTS}
    shape = replace(ModelShape.read(folder), blocks=blocks)
    for place in (Placement(), Placement(offload_buffers=True)):
        planned = plan_for(shape, GEOMETRY, settings, settings.batch_size, settings.text.window, 2, place)
        found[f"planned_device_bytes{'_buffers_offloaded' if place.offload_buffers else ''}"] = planned.total("device")
    return found


def compare(name: str, options: argparse.Namespace, device: str, place: Path) -> dict[str, Any]:
    """A model on one device and on all."""
    found: dict[str, Any] = {}
    counts = list(dict.fromkeys((1, options.gpus)))
    depths: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    told = {"window": options.window, "sequences": options.sequences, "place": str(place)}
    for blocks in options.depths:
        folder = place / f"{name}-{blocks}"
        make_model(name, folder, device, blocks)
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        for count in counts:
            devices = [f"cuda:{number}" for number in range(count)] if device.startswith("cuda") else ["cpu"] * count
            depths[count].append(run({**told, "model": str(folder), "blocks": blocks}, devices, options.threads))
    for count in counts:
        settings = settings_of({**told, "ranks": count})
        whole = whole_model(depths[count], name, folder, settings)
        found[f"{count} devices"] = {"depths": depths[count], "whole_model_extrapolated": whole}
    steps = [found[f"{count} devices"]["whole_model_extrapolated"]["step_seconds"] for count in counts]
    found["speed_up_extrapolated"] = steps[0] / steps[-1]
    return found


def main(arguments: list[str]) -> None:
    """Measure every model and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["llama-3.2-3b", "llama-3.1-8b"])
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=32, help="of an optimiser step; the paper's are 32")
    parser.add_argument("--depths", nargs=2, type=int, default=[2, 4])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    # Ranks import this very file as a module.
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    place = Path(tempfile.mkdtemp(prefix="oaem-benchmark-"))
    found: dict[str, Any] = {"gpus": options.gpus, "window": options.window, "sequences": options.sequences}
    found["models"] = {name: compare(name, options, device, place) for name in options.models}
    found["provenance"] = collect(device)
    write_json(options.output, found)
    print(json.dumps(found, indent=1))
    shutil.rmtree(place)


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_rank(rank)
    else:
        main(sys.argv[1:])
