"""Time every phase of quantisation at real shapes on this machine, beside plain oracles in the same run.

    python benchmarks/run.py --output benchmarks/out/run.json [--models llama-3.2-3b llama-3.1-8b qwen-2.5-3b embedded]

Without --models a CUDA device takes all of them and a CPU the embedded one. benchmarks/README.md explains the numbers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shapes import GEOMETRY, MODELS, Stopwatch
from torch import Tensor
from tuning import time_block_tuning

from oaem.config.settings import CodebookSettings, LayerSettings
from oaem.quantization.beam_search import beam_search
from oaem.quantization.codebook_steps import adam_steps, layer_optimizer
from oaem.quantization.initialise import initialise
from oaem.quantization.layer_loss import layer_loss
from oaem.quantization.search_order import draw_order
from oaem.quantization.weight import AdditiveWeight, normalised_groups, relative_error, row_scales_of
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.seeds import generator

WIDTHS = (4, 8, 16)
STEPS = 100
ORACLE_STEPS = 3


@dataclass(frozen=True)
class Layer:
    """A random layer with codes that a greedy residual pass over sampled entries gave it."""

    weight: Tensor
    hessian: Tensor
    codes: Tensor
    codebooks: Tensor
    row_scales: Tensor

    def rows(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of a search over the first `count` rows."""
        return self.weight[:count], self.hessian, self.codes[:count], self.codebooks, self.row_scales[:count]


def random_layer(out: int, columns: int, device: torch.device) -> Layer:
    """Gaussian weights under the second moments of correlated inputs of unequal strength."""
    draws = generator(0, "benchmark", out, columns)
    weight = torch.randn(out, columns, generator=draws).to(device) / columns**0.5
    inputs = torch.randn(2 * columns, columns, generator=draws).to(device)
    mixing = torch.randn(64, columns, generator=draws).to(device)
    inputs = (inputs + 0.15 * inputs[:, :64] @ mixing) * torch.exp(torch.randn(columns, generator=draws) / 2).to(device)
    row_scales = row_scales_of(weight)
    residual = normalised_groups(weight, row_scales, GEOMETRY.group_size).flatten(0, 1)
    codebooks, codes = [], []
    for _ in range(GEOMETRY.num_codebooks):
        sample = torch.randperm(len(residual), generator=draws)[: GEOMETRY.codebook_size].to(device)
        book = residual[sample]
        scores = [(book.square().sum(1) - 2 * part @ book.T).argmin(1) for part in residual.split(2**16)]
        codes.append(torch.cat(scores))
        codebooks.append(book)
        residual = residual - book[codes[-1]]
    shape = (out, columns // GEOMETRY.group_size, GEOMETRY.num_codebooks)
    hessian = inputs.T @ inputs / len(inputs)
    return Layer(weight, hessian, torch.stack(codes, 1).view(shape).int(), torch.stack(codebooks), row_scales)


def time_beam_search(layer: Layer, watch: Stopwatch, oracle_rows: int) -> list[dict[str, Any]]:
    """One pass at every width; the oracle walks the first rows only, and both are scored on these."""
    order = draw_order(layer.codes.shape[1], layer.codes.shape[2], generator(0, "order"))
    results = []
    for width in WIDTHS:
        seconds = watch.median(lambda width=width: beam_search(*layer.rows(len(layer.weight)), width, order), 3)
        rows = min(oracle_rows, len(layer.weight))
        timer = Stopwatch(watch.device)
        with timer.phase("oracle"):
            plain = beam_search.oracle(*layer.rows(rows), width, order)
        fast = beam_search(*layer.rows(len(layer.weight)), width, order)[:rows]
        results.append({
            "phase": "beam_search", "beam_width": width, "seconds": seconds, "oracle_rows": rows,
            "oracle_seconds": timer.seconds["oracle"], "relative_error": _error(layer, fast),
            "oracle_relative_error": _error(layer, plain),
            "rows_that_differ": int((fast != plain).flatten(1).any(1).sum()),
        })  # fmt: skip
    return results


def _error(layer: Layer, codes: Tensor) -> float:
    weight, hessian, _, codebooks, row_scales = (part.double() for part in layer.rows(len(codes)))
    return relative_error(weight, AdditiveWeight(codes, codebooks, row_scales).dequantize(), hessian)


def time_codebook_steps(layer: Layer, watch: Stopwatch) -> dict[str, Any]:
    """Adam steps as an epoch takes them; the oracle differentiates the dense formula with autograd."""
    settings = CodebookSettings()

    def ours(steps: int) -> tuple[Tensor, Tensor]:
        codebooks, row_scales = layer.codebooks.clone(), layer.row_scales.clone()
        problem = layer_loss(layer.weight, layer.hessian, layer.codes, len(codebooks[0]))
        optimizer = layer_optimizer(codebooks, row_scales, settings)
        adam_steps(problem, codebooks, row_scales, optimizer, steps, lambda loss: True)
        return codebooks, row_scales

    def plain() -> tuple[Tensor, Tensor]:
        codebooks, row_scales = layer.codebooks.clone().requires_grad_(), layer.row_scales.clone().requires_grad_()
        optimizer = layer_optimizer(codebooks, row_scales, settings)
        for _ in range(ORACLE_STEPS):
            groups = torch.stack([book[layer.codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
            difference = groups.flatten(1) * row_scales[:, None] - layer.weight
            optimizer.zero_grad()
            (torch.sum(difference @ layer.hessian * difference) / len(layer.weight)).backward()
            optimizer.step()
        return codebooks.detach(), row_scales.detach()

    errors = []
    for codebooks, row_scales in (ours(ORACLE_STEPS), plain()):
        parts = (layer.codes, codebooks.double(), row_scales.double())
        errors.append(
            relative_error(layer.weight.double(), AdditiveWeight(*parts).dequantize(), layer.hessian.double())
        )
    return {
        "phase": "codebook_steps", "steps": STEPS, "seconds": watch.median(lambda: ours(STEPS), 1),
        "oracle_steps": ORACLE_STEPS, "oracle_seconds": watch.median(plain, 1),
        "relative_error_after_oracle_steps": errors[0], "oracle_relative_error": errors[1],
    }  # fmt: skip


def time_initialisation(layer: Layer, watch: Stopwatch) -> dict[str, Any]:
    """All codebooks by k-means and OA-EM, with the paper's iterations."""
    settings = LayerSettings()
    initialise("oaem", layer.weight, layer.hessian, GEOMETRY, settings, 0)
    clock = Stopwatch(watch.device)
    found = initialise("oaem", layer.weight, layer.hessian, GEOMETRY, settings, 0, clock)
    error = relative_error(layer.weight.double(), found.dequantize().double(), layer.hessian.double())
    seconds = {"kmeans_seconds": clock.seconds["kmeans"], "oaem_seconds": clock.seconds["oaem"]}
    return {"phase": "initialisation", "relative_error": error, **seconds}


def ceilings(device: torch.device, watch: Stopwatch) -> dict[str, float]:
    """What this device reaches at best: products in TFLOP/s and a copy in TB/s, bytes read and written."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device)
    flops = 2 * size**3 / 1e12
    found = {"float32_tflops": flops / watch.median(lambda: left @ right, 5)}
    halves = left.bfloat16(), right.bfloat16()
    found["bfloat16_tflops"] = flops / watch.median(lambda: halves[0] @ halves[1], 5)
    found["copy_tb_s"] = 8 * size**2 / 1e12 / watch.median(lambda: right.copy_(left), 5)
    return found


def main(arguments: list[str]) -> None:
    """Run all benchmarks and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    watch = Stopwatch(device)
    report: dict[str, Any] = {
        "provenance": collect(str(device)), "threads": torch.get_num_threads(), "geometry": GEOMETRY.name,
        "ceilings": ceilings(device, watch), "results": [],
    }  # fmt: skip
    for name in options.models or (list(MODELS) if on_gpu else ["embedded"]):
        for (out, columns), linears in MODELS[name].linears().items():
            layer = random_layer(out, columns, device)
            place = {"model": name, "linears": linears, "out": out, "in": columns}
            found = time_beam_search(layer, watch, 32 if on_gpu else 2)
            found += [time_codebook_steps(layer, watch), time_initialisation(layer, watch)]
            report["results"] += [{**place, **result} for result in found]
            for result in found:
                print(place, {key: _short(value) for key, value in result.items()}, flush=True)
            write_json(options.output, report)
        tuning = time_block_tuning(MODELS[name], device, 4096 if on_gpu else 256, watch)
        print(name, {key: _short(value) for key, value in tuning.items()}, flush=True)
        report["results"].append({"model": name, **tuning})
        write_json(options.output, report)


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main(sys.argv[1:])
