"""One whole block of a real shape with random weights through the calls of the real rules, end to end.

    python benchmarks/end_to_end.py --output benchmarks/out/block.json [--model llama-3.2-3b] [--sequences 128]

Makes a model of that shape cut to two blocks in the Hugging Face format, then quantises its first block once for each
beam width: OA-EM, as many epochs as `--epochs` says whatever the loss, block tuning of five passes a group. Then an
optimiser step of PV-tuning and perplexity on the two blocks. Reports seconds by phase, the largest memory the device
held, and the whole model's quantisation time as blocks times seconds: an extrapolation, named so. With `--blocks 2` the
model has a third block and the second one is reported, too: as most blocks of a model it finds kernels loaded and the
memory there that activations pass through on their way to the disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from shapes import GEOMETRY, MODELS
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from oaem.calibration.artefacts import load_blocks
from oaem.calibration.sequential import SequentialJob, quantize_range
from oaem.config.grid import Run
from oaem.config.schema import PVTuning
from oaem.config.settings import BlockTuningSettings, CodebookSettings, LayerSettings
from oaem.evaluation.perplexity import perplexity
from oaem.models.families import family_of
from oaem.models.load import load_config, load_model
from oaem.pv.trainer import PVJob, tune
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.seeds import generator


def make_model(name: str, folder: Path, device: str, depth: int) -> None:
    """A random model of `depth` blocks; weights are small, so that activations stay of order one."""
    sizes = MODELS[name]
    shape = {
        "hidden_size": sizes.hidden, "intermediate_size": sizes.mlp, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads, "vocab_size": sizes.vocabulary, "num_hidden_layers": depth,
        "max_position_embeddings": 8192, "tie_word_embeddings": sizes.tied_head,
    }  # fmt: skip
    config = Qwen2Config(**shape) if name.startswith("qwen") else LlamaConfig(head_dim=sizes.head_width, **shape)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def quantise_blocks(job: SequentialJob, tokens: torch.Tensor, stop: int, place: Path) -> list[dict[str, Any]]:
    """Quantise blocks up to `stop`; of each its seconds by phase, and the device's peak over all of them."""
    _reset(job.device)
    reports = quantize_range(job, tokens, 0, stop, place / "blocks", place / "activations")
    return [
        {
            "beam_width": job.run.beam_width,
            "block": index,
            "seconds": report["seconds"],
            "total_seconds": sum(report["seconds"].values()),
            "epochs": {name: linear["epochs"] for name, linear in report["linears"].items()},
            "relative_error": {name: linear["relative_error"] for name, linear in report["linears"].items()},
            "peak_bytes": _peak(job.device),
        }
        for index, report in enumerate(reports)
    ]


def time_pv(folder: Path, blocks: Path, tokens: torch.Tensor, device: str, place: Path) -> dict[str, Any]:
    """Two optimiser steps of PV-tuning on all blocks, and their peak."""
    _reset(device)
    text = {"corpus": "random", "protocol": "joined", "window": tokens.shape[1]}
    settings = PVTuning.model_validate({
        "text": text, "validation_text": text, "test": "random", "epochs": 1, "batch_size": len(tokens) // 2,
    })  # fmt: skip
    dtype = torch.bfloat16
    job = PVJob(folder, settings, 42, dtype, dtype, device, "benchmark")
    result = tune(job, load_blocks(folder, blocks), tokens, place, test=lambda _: 1.0, validation=lambda _: 1.0)
    return {"seconds": result["seconds"], "steps": 2, "sequences": len(tokens), "peak_bytes": _peak(device)}


def time_perplexity(folder: Path, tokens: torch.Tensor, device: str) -> dict[str, Any]:
    """Perplexity of all blocks on a few windows; random weights, so the value is about the vocabulary."""
    _reset(device)
    model = load_model(folder, torch.bfloat16, device)
    result = perplexity(model, tokens, 1, device)
    return {"value": result.value, "windows": result.windows, "peak_bytes": _peak(device)}


def _reset(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else None


def main(arguments: list[str]) -> None:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS, default="llama-3.2-3b")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--beam-widths", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--blocks", type=int, choices=(1, 2), default=1, help="how many are quantised and reported")
    parser.add_argument(
        "--pv-sequences", type=int, default=8, help="of two steps; 0 leaves PV-tuning and perplexity out"
    )
    options = parser.parse_args(arguments)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    place = Path(tempfile.mkdtemp(prefix="oaem-benchmark-"))
    folder = place / "model"
    depth = options.blocks + 1  # the last block has no activations to store
    make_model(options.model, folder, device, depth)
    config, blocks_of_model = load_config(folder), MODELS[options.model].blocks
    draws = generator(0, "benchmark")
    tokens = torch.randint(config.vocab_size, (options.sequences, options.window), generator=draws, dtype=torch.int32)
    found: dict[str, Any] = {"model": options.model, "sequences": options.sequences, "window": options.window}
    found |= {"provenance": collect(device), "blocks": []}
    layer = LayerSettings(codebooks=CodebookSettings(relative_tolerance=0.0))
    last = len(options.beam_widths) - 1
    for index, beam_width in enumerate(options.beam_widths):
        job = SequentialJob(
            run=Run(options.model, GEOMETRY, "oaem", beam_width, options.epochs, 42),
            model_folder=folder, family=family_of(config), layer=layer, tuning=BlockTuningSettings(),
            dtype=torch.bfloat16 if device != "cpu" else torch.float32, device=device, fingerprint="benchmark",
        )  # fmt: skip
        # PV-tuning needs all blocks of one run; the last one is quantised for the last beam width alone.
        stop = depth if index == last and options.pv_sequences else options.blocks
        for measured in quantise_blocks(job, tokens, stop, place / f"b{beam_width}")[: options.blocks]:
            measured["extrapolated_hours"] = measured["total_seconds"] * blocks_of_model / 3600
            found["blocks"].append(measured)
            print(json.dumps(measured), flush=True)
        write_json(options.output, found)
    if options.pv_sequences:
        few, blocks = tokens[: options.pv_sequences], place / f"b{options.beam_widths[last]}" / "blocks"
        found["perplexity"] = time_perplexity(folder, few, device)
        write_json(options.output, found)
        found["pv_tuning"] = time_pv(folder, blocks, few, device, place / "pv")
        write_json(options.output, found)
        print(json.dumps({key: found[key] for key in ("perplexity", "pv_tuning")}))
    shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1:])
