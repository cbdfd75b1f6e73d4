"""The gate of an MLP in Triton, through Triton's interpreter, against the formula and its autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from oaem.quantization.kernels.cuda.gated import gated, gated_forward, is_gated
from tests.unit.interpreter import randn

SIZES = {"hidden_size": 16, "intermediate_size": 24}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 400)], ids=str)
def test_gate_and_its_gradients(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    parts = [(3 * randn(*shape, seed=seed)).to(dtype).requires_grad_() for seed in (0, 1)]
    incoming = randn(*shape, seed=2).to(dtype)
    found = gated(*parts)
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = functional.silu(exact[0]) * exact[1]
    gradients = torch.autograd.grad(found, parts, incoming)
    exact_gradients = torch.autograd.grad(expected, exact, incoming.double())
    for ours, wanted in zip((found, *gradients), (expected, *exact_gradients), strict=True):
        assert ours.dtype == dtype
        # One rounding to the result's dtype.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), [(LlamaMLP, LlamaConfig), (Qwen2MLP, Qwen2Config)])
def test_the_mlps_of_llama_and_qwen_are_known(kind: type[nn.Module], config: type) -> None:
    module, inputs = kind(config(**SIZES, num_attention_heads=2)), randn(2, 5, 16)
    assert is_gated(module)
    torch.testing.assert_close(gated_forward(module, inputs), module(inputs), rtol=1e-5, atol=1e-6)


class Other(nn.Module):
    """Gated by the up projection, and once more scaled."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.gate_proj = self.up_proj = self.down_proj = nn.Identity()
        self.act_fn, self.scaled = nn.SiLU(), scaled
        self.factor = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.scaled:
            return self.factor * self.down_proj(self.act_fn(self.gate_proj(inputs)) * self.up_proj(inputs))
        return self.down_proj(self.gate_proj(inputs) * self.act_fn(self.up_proj(inputs)))


@pytest.mark.parametrize(
    "module",
    [Gemma3MLP(Gemma3TextConfig(**SIZES)), Other(False), Other(True), nn.Linear(2, 2)],
    ids=lambda m: str(type(m)),
)
def test_other_modules_are_left_alone(module: nn.Module) -> None:
    """Gemma's gate is a gelu."""
    assert not is_gated(module)
