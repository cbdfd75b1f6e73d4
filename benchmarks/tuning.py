"""Block tuning on a random block of a real shape: seconds a step, and what it reaches beside plain float32."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from shapes import GEOMETRY, Model, Stopwatch
from torch import Tensor, nn

from oaem.config.settings import BlockTuningSettings, KMeansSettings, LayerSettings
from oaem.models.capture import run_block
from oaem.numerics.fast_paths import plain_paths
from oaem.quantization.block_tuning import launcher_of, precision_of, tune_block
from oaem.quantization.initialise import initialise
from oaem.quantization.linear import QuantizedLinear
from oaem.runtime.seeds import generator

# Inputs and targets [sequences, tokens, hidden] and the block's other arguments.
Problem = tuple[Tensor, Tensor, dict[str, Any]]


@torch.no_grad()
def time_block_tuning(model: Model, device: torch.device, tokens: int, watch: Stopwatch) -> dict[str, Any]:
    """A step of block tuning, with every linear quantised and before any is; what it reaches beside plain float32."""
    block, problem = make_problem(model, device, tokens)
    result: dict[str, Any] = {"phase": "block_tuning", "tokens": tokens}
    for name in ("dense", "quantised"):
        if name == "quantised":
            quantise(block)
        result[f"{name}_seconds_a_step"] = seconds_a_step(copy.deepcopy(block), problem, watch)
    return result | tuned_beside_plain(block, problem, watch) if device.type == "cuda" else result


@torch.no_grad()
def make_problem(model: Model, device: torch.device, tokens: int) -> tuple[nn.Module, Problem]:
    """A random block in bfloat16, random inputs and what the block makes of them."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=model.hidden, intermediate_size=model.mlp, num_attention_heads=model.heads,
        num_key_value_heads=model.key_heads, head_dim=model.head_width, num_hidden_layers=1, vocab_size=16,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    block = LlamaDecoderLayer(config, 0).to(device, torch.bfloat16)
    sequences = 32 if device.type == "cuda" else 8
    inputs = torch.randn(sequences, tokens, model.hidden, generator=generator(0, "tuning")).to(device, torch.bfloat16)
    position = LlamaRotaryEmbedding(config).to(device)(inputs[:1], torch.arange(tokens, device=device)[None])
    arguments = {"position_embeddings": position}
    return block, (inputs, run_block(block, inputs, arguments), arguments)


def seconds_a_step(block: nn.Module, problem: Problem, watch: Stopwatch) -> float:
    """From tunings of one epoch and of four, so that what happens once a tuning does not count."""
    inputs, targets, arguments = problem

    def tune(epochs: int) -> None:
        tune_block(block, inputs, targets, arguments, BlockTuningSettings(epochs=epochs), 0)

    seconds = [watch.median(partial(tune, epochs), 3) for epochs in (1, 4)]
    return (seconds[1] - seconds[0]) / (3 * len(inputs))


def tuned_beside_plain(block: nn.Module, problem: Problem, watch: Stopwatch) -> dict[str, Any]:
    """The same tuning, ten times as fast as the paper's so that it shows, by the fast path and in plain float32."""
    inputs, targets, arguments = problem
    settings = BlockTuningSettings(epochs=10, lr=1e-4)
    steps = settings.epochs * len(inputs)

    def error(candidate: nn.Module) -> float:
        with torch.no_grad():
            difference = run_block(candidate, inputs, arguments).float() - targets
        return float(difference.square().mean(dtype=torch.float64))

    tuned, plain = copy.deepcopy(block), copy.deepcopy(block)
    losses = tune_block(tuned, inputs, targets, arguments, settings, 0)
    timer = Stopwatch(watch.device)
    with plain_paths(precision_of, launcher_of), timer.phase("plain"):
        plain_losses = tune_block(plain, inputs, targets, arguments, settings, 0)
    return {
        "steps": steps, "error_before": error(block), "error": error(tuned), "oracle_error": error(plain),
        "losses": losses, "oracle_losses": plain_losses, "oracle_seconds_a_step": timer.seconds["plain"] / steps,
    }  # fmt: skip


def quantise(block: nn.Module) -> None:
    """Replace every linear by the additive weight of a short k-means."""
    settings = LayerSettings(kmeans=KMeansSettings(iterations=10))
    for parent in list(block.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                dense = linear.weight.detach().float()
                identity = torch.eye(dense.shape[1], device=dense.device)
                weight = initialise("greedy", dense, identity, GEOMETRY, settings, 0)
                setattr(parent, name, QuantizedLinear(weight).to(linear.weight.dtype))
