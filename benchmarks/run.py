"""Time every phase of quantisation at real shapes on this machine, beside plain oracles in the same run.

    python benchmarks/run.py --output benchmarks/out/run.json [--models llama-3.2-3b llama-3.1-8b qwen-2.5-3b embedded]

Without --models a CUDA device takes all of them and a CPU the embedded one. benchmarks/README.md explains the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oaem.geometry import Geometry
from oaem.quantization.beam_search import beam_search, beam_search_reference
from oaem.quantization.block_tuning import tune_block
from oaem.quantization.codebook_steps import LayerLoss, adam_steps, layer_optimizer
from oaem.quantization.initialise import initialise
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.search_order import draw_order
from oaem.quantization.weight import AdditiveWeight, normalised_groups, relative_error, row_scales_of
from oaem.runtime.atomic import write_json
from oaem.runtime.provenance import collect
from oaem.runtime.seeds import generator
from oaem.settings import BlockTuningSettings, CodebookSettings, LayerSettings


@dataclass(frozen=True)
class Model:
    """Sizes of one transformer block."""

    hidden: int
    mlp: int
    heads: int
    key_heads: int
    head_width: int

    def linears(self) -> dict[tuple[int, int], list[str]]:
        """The block's linear layers by their shape (out, in)."""
        keys = (self.key_heads * self.head_width, self.hidden)
        wide = (self.heads * self.head_width, self.hidden)
        shapes = {
            "q": wide, "k": keys, "v": keys, "o": (self.hidden, wide[0]),
            "gate": (self.mlp, self.hidden), "up": (self.mlp, self.hidden), "down": (self.hidden, self.mlp),
        }  # fmt: skip
        names: dict[tuple[int, int], list[str]] = {}
        for name, shape in shapes.items():
            names.setdefault(shape, []).append(name)
        return names


MODELS = {
    "llama-3.2-3b": Model(3072, 8192, 24, 8, 128),
    "llama-3.1-8b": Model(4096, 14336, 32, 8, 128),
    "qwen-2.5-3b": Model(2048, 11008, 16, 2, 128),
    "embedded": Model(576, 1536, 9, 3, 64),
}
GEOMETRY = Geometry(2, 8, 8)
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


@dataclass
class Stopwatch:
    """Seconds by phase, with the device's work waited for; a clock as `initialise` takes it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the body to `name`."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def median(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of `work` after one run that warms up."""
        work()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


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
            plain = beam_search_reference(*layer.rows(rows), width, order)
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
        problem = LayerLoss(layer.weight, layer.hessian, layer.codes, len(codebooks[0]))
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


def time_block_tuning(model: Model, device: torch.device, tokens: int, watch: Stopwatch) -> dict[str, Any]:
    """A step of block tuning, with every linear quantised and before any is."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=model.hidden, intermediate_size=model.mlp, num_attention_heads=model.heads,
        num_key_value_heads=model.key_heads, head_dim=model.head_width, num_hidden_layers=1, vocab_size=16,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    steps = 4
    inputs, targets = torch.randn(2, steps, tokens, model.hidden, generator=generator(0, "tuning")).to(device)
    position = LlamaRotaryEmbedding(config).to(device)(inputs[:1], torch.arange(tokens, device=device)[None])
    result: dict[str, Any] = {"phase": "block_tuning", "tokens": tokens}
    arguments = {"position_embeddings": position, "attention_mask": None}
    for name in ("dense", "quantised"):
        block = LlamaDecoderLayer(config, 0).to(device)
        if name == "quantised":
            _quantise(block, device)
        tune = partial(tune_block, block, inputs, targets, arguments, BlockTuningSettings(epochs=1), 0)
        result[f"{name}_seconds_a_step"] = watch.median(tune, 1) / steps
    return result


def _quantise(block: torch.nn.Module, device: torch.device) -> None:
    for parent in list(block.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, torch.nn.Linear):
                out, columns = linear.weight.shape
                codes = torch.randint(0, GEOMETRY.codebook_size, (out, columns // 8, 2), dtype=torch.uint8)
                codebooks = torch.randn(2, GEOMETRY.codebook_size, 8) / (2 * columns) ** 0.5
                weight = AdditiveWeight(codes, codebooks, torch.ones(out))
                setattr(parent, name, QuantizedLinear(weight).to(device))


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
