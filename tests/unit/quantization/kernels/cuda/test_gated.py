"""The gate of an MLP in Triton, through Triton's interpreter, against the formula and its autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from oaem.quantization.kernels.cuda.gated import ACTIVATIONS, gate_activation, gated, gated_forward
from tests.unit.interpreter import randn

SIZES = {"hidden_size": 16, "intermediate_size": 24}


def gelu(inputs: Tensor) -> Tensor:
    """The approximation, written out."""
    return 0.5 * inputs * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inputs + 0.044715 * inputs**3)))


@pytest.mark.parametrize(("activation", "formula"), [("silu", functional.silu), ("gelu_tanh", gelu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 400)], ids=str)
def test_gate_and_its_gradients(
    dtype: torch.dtype, shape: tuple[int, ...], activation: str, formula: Callable[[Tensor], Tensor]
) -> None:
    parts = [(3 * randn(*shape, seed=seed)).to(dtype).requires_grad_() for seed in (0, 1)]
    incoming = randn(*shape, seed=2).to(dtype)
    found = gated(*parts, activation)
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = formula(exact[0]) * exact[1]
    gradients = torch.autograd.grad(found, parts, incoming)
    exact_gradients = torch.autograd.grad(expected, exact, incoming.double())
    for ours, wanted in zip((found, *gradients), (expected, *exact_gradients), strict=True):
        assert ours.dtype == dtype
        # One rounding to the result's dtype.
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, which computes for the interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_from_zero_a_gate_is_open_or_shut(activation: str) -> None:
    gate, up = torch.tensor([-1e4, -60.0, 60.0, 1e4]).requires_grad_(), torch.tensor(3.0).expand(4)
    found = gated(gate[None], up[None], activation)[0]
    assert found.tolist() == pytest.approx([0, 0, 180, 3e4], abs=1e-20)
    assert torch.autograd.grad(found.sum(), gate)[0].tolist() == pytest.approx([0, 0, 3, 3], abs=1e-20)


def test_another_activation_is_refused() -> None:
    with pytest.raises(KeyError, match="relu"):
        gated(randn(2, 3), randn(2, 3), "relu")


@pytest.mark.parametrize(
    ("kind", "config", "activation"),
    [
        (LlamaMLP, LlamaConfig, "silu"),
        (Qwen2MLP, Qwen2Config, "silu"),
        (Gemma3MLP, Gemma3TextConfig, "gelu_tanh"),
    ],
)
def test_the_mlps_of_llama_qwen_and_gemma_are_known(kind: type[nn.Module], config: type, activation: str) -> None:
    module, inputs = kind(config(**SIZES, num_attention_heads=2)), randn(2, 5, 16)
    assert gate_activation(module) == activation
    torch.testing.assert_close(gated_forward(module, activation, inputs), module(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"])
def test_every_way_to_write_the_gelu_by_tanh_is_known(name: str) -> None:
    assert gate_activation(Gemma3MLP(Gemma3TextConfig(**SIZES, hidden_activation=name))) == "gelu_tanh"


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
    [
        *(
            Gemma3MLP(Gemma3TextConfig(**SIZES, hidden_activation=name))
            for name in ("gelu", "quick_gelu", "relu", "tanh")
        ),
        *(Other(False), Other(True), nn.Linear(2, 2)),
    ],
    ids=lambda module: f"{type(module).__name__} {getattr(module, 'act_fn', '')}",
)
def test_other_modules_are_left_alone(module: nn.Module) -> None:
    """The exact gelu, too, though it is off from the one by tanh by less than 5e-4 everywhere."""
    assert gate_activation(module) is None
