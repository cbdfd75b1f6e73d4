"""Block tuning on a CUDA device, in bfloat16 and recorded, against the plain float32 loop on the CPU."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from oaem.config.settings import BlockTuningSettings, LayerSettings
from oaem.models.attention_switch import sliding_mask
from oaem.quantization.block_tuning import tune_block
from oaem.quantization.initialise import initialise
from oaem.quantization.kernels.cuda.attention import causal_attention
from oaem.quantization.kernels.cuda.gated import ACTIVATIONS, gated
from oaem.quantization.kernels.cuda.rms_norm import rms_norm
from oaem.quantization.kernels.cuda.rotary import rotary, rotate
from oaem.quantization.kernels.cuda.squared_error import squared_error_triton
from oaem.quantization.linear import QuantizedLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS = BlockTuningSettings(epochs=8, lr=1e-3)
SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}  # fmt: skip


def problem(family: str) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """A block with attention and one or two MLP linears quantised, inputs, the outputs before that, call arguments."""
    from oaem.config.geometry import Geometry

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE) if family == "llama" else Qwen2Config(**SHAPE)
    config._attn_implementation = "sdpa"
    block = LlamaDecoderLayer(config, 0) if family == "llama" else Qwen2DecoderLayer(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += torch.randn_like(parameter) / 12
    inputs = torch.randn(12, 200, 128)
    rotary = LlamaRotaryEmbedding(config)(inputs, torch.arange(200)[None])
    arguments = {"position_embeddings": rotary, "attention_mask": None}
    with torch.no_grad():
        targets = output_of(block, inputs, arguments)
    mlp = ["up_proj", "gate_proj"] if family == "llama" else ["up_proj"]
    for parent, name in [(block.self_attn, f"{letter}_proj") for letter in "qkvo"] + [
        (block.mlp, name) for name in mlp
    ]:
        linear = getattr(parent, name)
        weight = initialise(
            "greedy", linear.weight.detach(), torch.eye(128), Geometry(2, 4, 8), LayerSettings(), seed=0
        )
        setattr(parent, name, QuantizedLinear(weight, linear.bias))
    return block, inputs, targets, arguments


def output_of(block: nn.Module, inputs: Tensor, arguments: dict[str, Any]) -> Tensor:
    output = block(inputs, **arguments)
    return output[0] if isinstance(output, tuple) else output


def error_of(block: nn.Module, inputs: Tensor, targets: Tensor, arguments: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(functional.mse_loss(output_of(block.cpu(), inputs, arguments), targets))


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "position_embeddings": tuple(part.cuda() for part in arguments["position_embeddings"])}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_ends_where_the_float32_loop_ends_with_the_same_bits_each_time(family: str) -> None:
    block, inputs, targets, arguments = problem(family)
    before = error_of(block, inputs, targets, arguments)
    plain, ours, again = (copy.deepcopy(block) for _ in range(3))
    expected = tune_block(plain, inputs, targets, arguments, SETTINGS, seed=3)
    losses = tune_block(ours.cuda(), inputs.cuda(), targets.cuda(), on_device(arguments), SETTINGS, seed=3)
    repeated = tune_block(again.cuda(), inputs, targets, on_device(arguments), SETTINGS, seed=3)
    assert losses == repeated
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), again.parameters(), strict=True))
    # Rounding to bfloat16 must not cost a hundredth of what tuning gains.
    errors = [error_of(tuned, inputs, targets, arguments) for tuned in (plain, ours)]
    assert errors[0] < 0.9 * before
    assert abs(errors[1] - errors[0]) < 0.01 * (before - errors[0])
    assert losses == pytest.approx(expected, rel=0.01)


def test_a_block_that_cannot_be_recorded_is_tuned_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    block, inputs, targets, arguments = problem("llama")

    class Asking(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor, **arguments: Any) -> Tensor:
            assert float(hidden.abs().max()) > 0  # the host waits for the device
            return output_of(self.inner, hidden, arguments)

    found = []
    for candidate in (copy.deepcopy(block), Asking(copy.deepcopy(block))):
        with caplog.at_level(logging.INFO):
            found.append(tune_block(candidate.cuda(), inputs, targets, on_device(arguments), SETTINGS, seed=3))
    assert "cannot be recorded" in caplog.text
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    torch.rand(1, device="cuda")  # random numbers still work


@pytest.mark.parametrize(
    ("tokens", "width", "window"),
    [
        *[(200, 64, 0), (129, 128, 0), (70, 32, 0), (256, 64, 0), (192, 128, 0), (200, 256, 0), (256, 256, 0)],
        *[(256, 16, 40), (256, 32, 64), (256, 64, 100), (256, 128, 200), (256, 256, 20), (320, 256, 150)],
    ],
)
def test_causal_attention_and_its_gradients(tokens: int, width: int, window: int) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    parts = [
        torch.randn(2, heads, tokens, width, generator=draws, device="cuda").bfloat16().requires_grad_()
        for heads in (6, 2, 2)
    ]
    found = causal_attention(*parts, 0.1, window)
    exact_parts = [part.detach().double().requires_grad_() for part in parts]
    exact = functional.scaled_dot_product_attention(
        *exact_parts, sliding_mask(tokens, window, found.device), scale=0.1, enable_gqa=True
    )
    incoming = torch.randn(found.shape, generator=draws, device="cuda").bfloat16()
    gradients = torch.autograd.grad(found, parts, incoming, retain_graph=True)
    exact_gradients = torch.autograd.grad(exact.transpose(1, 2), exact_parts, incoming.double())
    for ours, wanted in zip((found, *gradients), (exact.transpose(1, 2), *exact_gradients), strict=True):
        assert float((ours - wanted).detach().norm() / wanted.detach().norm()) < 0.01
    for _ in range(5):
        assert torch.equal(found, causal_attention(*parts, 0.1, window))
        assert all(map(torch.equal, gradients, torch.autograd.grad(found, parts, incoming, retain_graph=True)))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("heads", "key_heads", "tokens", "width"), [(9, 3, 200, 64), (4, 4, 33, 24)])
def test_the_rotary_embedding_and_its_gradients(heads: int, key_heads: int, tokens: int, width: int) -> None:
    """Of bfloat16 states as products leave them: rounded once."""
    draws = torch.Generator("cuda").manual_seed(0)
    parts = [
        torch.randn(2, tokens, count, width, generator=draws, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
        for count in (heads, key_heads)
    ]
    cos, sin = torch.randn(2, 1, tokens, width, generator=draws, device="cuda")
    found = rotary(*parts, cos, sin)
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = [rotate(part, cos.double(), sin.double()) for part in exact]
    incoming = [torch.randn(part.shape, generator=draws, device="cuda").bfloat16() for part in parts]
    gradients = torch.autograd.grad(found, parts, incoming)
    exact_gradients = torch.autograd.grad(expected, exact, [part.double() for part in incoming])
    for ours, wanted in zip((*found, *gradients), (*expected, *exact_gradients), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_and_its_gradients(activation: str) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    parts = [3 * torch.randn(1, 200, 1536, generator=draws, device="cuda") for _ in range(3)]
    gate, up, incoming = (part.bfloat16() for part in parts)
    exact = [part.double().requires_grad_() for part in (gate, up)]
    expected = ACTIVATIONS[activation](exact[0]) * exact[1]
    exact_gradients = torch.autograd.grad(expected, exact, incoming.double())
    found = gated(gate.requires_grad_(), up.requires_grad_(), activation)
    gradients = torch.autograd.grad(found, (gate, up), incoming)
    for ours, wanted in zip((found, *gradients), (expected, *exact_gradients), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1024, 576), (1, 700, 3072), (1, 200, 9, 64)], ids=str)
def test_the_norm_and_its_gradients(shape: tuple[int, ...], offset: int) -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    inputs = (3 * torch.randn(shape, generator=draws, device="cuda")).requires_grad_()
    weight = (1 - offset + torch.randn(shape[-1], generator=draws, device="cuda") / 3).requires_grad_()
    incoming = torch.randn(shape, generator=draws, device="cuda").bfloat16()
    found = rms_norm(inputs, weight, 0.1, offset)
    exact = [part.detach().double().requires_grad_() for part in (inputs, weight)]
    expected = functional.rms_norm(exact[0], (shape[-1],), offset + exact[1], 0.1)
    gradients = torch.autograd.grad(found, (inputs, weight), incoming, retain_graph=True)
    exact_gradients = torch.autograd.grad(expected, exact, incoming.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    for ours, wanted in zip(gradients, exact_gradients, strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < 1e-6
    assert all(map(torch.equal, gradients, torch.autograd.grad(found, (inputs, weight), incoming)))


def test_the_squared_error_and_its_gradient() -> None:
    draws = torch.Generator("cuda").manual_seed(0)
    output, target = (torch.randn(1, 700, 3072, generator=draws, device="cuda") for _ in range(2))
    target = target.bfloat16()
    exact = output.double().requires_grad_()
    expected = (exact - target.double()).square().mean()
    expected.backward()
    error, gradient = squared_error_triton(output, target)
    torch.testing.assert_close(error, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-6, atol=1e-9)
    assert all(map(torch.equal, (error, gradient), squared_error_triton(output, target)))
