"""The block that is tuned on a CUDA device, here on the CPU: torch's attention and Triton's interpreter stand in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda import attention as causal_attention
from oaem.quantization.kernels.cuda.mixed_precision import mixed_precision
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> Tensor:
    assert window == 0
    halves = (part.bfloat16() for part in (query, key, value))
    attended = functional.scaled_dot_product_attention(*halves, is_causal=True, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2)


def quantised(linear: nn.Linear) -> QuantizedLinear:
    """Random, but as large as the linear."""
    out, columns = linear.weight.shape
    codes, codebooks = (
        torch.randint(0, 16, (out, columns // 8, 2)),
        torch.randn(2, 16, 8) * linear.weight.std() / 2**0.5,
    )
    return QuantizedLinear(AdditiveWeight(codes, codebooks, torch.rand(out) + 0.5), linear.bias)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("up_proj",), ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj")])
def test_outputs_and_gradients_are_those_of_float32_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(causal_attention, "causal_attention", attend)
    config = Qwen2Config(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    block, hidden = Qwen2DecoderLayer(config, 0), torch.randn(1, 40, 64)
    nn.init.normal_(block.self_attn.q_proj.bias)
    for parent in (block.self_attn, block.mlp):
        for name, linear in list(parent.named_children()):
            if name in names:
                setattr(parent, name, quantised(linear))
    arguments: dict[str, Any] = {
        "position_embeddings": Qwen2RotaryEmbedding(config)(hidden, torch.arange(40)[None]), "attention_mask": None,
    }  # fmt: skip

    def run() -> tuple[Tensor, ...]:
        output = block(hidden, **arguments)
        output = output[0] if isinstance(output, tuple) else output
        return output, *torch.autograd.grad(output.square().sum(), list(block.parameters()))

    expected = run()
    with mixed_precision(block):
        found = run()
    for name, ours, exact in zip(("output", *dict(block.named_parameters())), found, expected, strict=True):
        assert ours.dtype == torch.float32, name
        # A bfloat16 number is off by 0.4 % at most, by 0.2 % in the mean, and a gradient goes through a dozen of them.
        # A bias of the keys shifts all scores of a query nearly alike: its gradient is a small rest of large numbers.
        bound = {"output": 0.003, "self_attn.k_proj.bias": 0.03}.get(name, 0.01)
        assert float((ours - exact).detach().norm() / exact.detach().norm()) < bound, name
    for ours, exact in zip(run(), expected, strict=True):
        assert torch.equal(ours, exact)  # everything is as it was
