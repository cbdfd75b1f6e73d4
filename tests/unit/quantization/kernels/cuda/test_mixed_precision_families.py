"""What a block of each family computes while it is tuned on a CUDA device; nothing here is quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

pytest.importorskip("tests.unit.interpreter")

from oaem.models.attention_switch import sliding_mask
from oaem.models.capture import block_arguments, run_block
from oaem.models.load import load_block
from oaem.quantization.kernels.cuda import attention as causal_attention
from oaem.quantization.kernels.cuda.mixed_precision import mixed_precision
from oaem.runtime.seeds import generator
from tests.conftest import FAMILIES, HIDDEN
from tests.fused import FusedCalls

LENGTH = 64  # a whole tile, which windows must have


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> Tensor:
    halves = (part.bfloat16() for part in (query, key, value))
    mask = sliding_mask(query.shape[2], window, query.device)
    attended = functional.scaled_dot_product_attention(*halves, mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2)


@pytest.mark.parametrize(
    ("family", "index"), [*((family, 0) for family in FAMILIES), ("gemma3_text", 1)], ids=lambda value: str(value)
)
def test_every_family_computes_what_it_does_in_float32(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str, bool], Path], family: str, index: int
) -> None:
    """As near as transformers' own modules come in bfloat16, times 1.5: a processor's products may round another way.

    That is 2 % for some gradients (dozens of roundings by 0.2 % in the mean), and beyond 2 % nothing is more than a
    quarter further off than those modules. A norm that took its weight for another
    thing (Gemma's multiply by 1 + weight) would be off by tens of percents.
    """
    windows: list[int] = []
    monkeypatch.setattr(causal_attention, "causal_attention", lambda *a: windows.append(a[-1]) or attend(*a))
    folder = tiny_model(family, True)
    block = load_block(folder, index, torch.float32, "cpu")
    hidden = torch.randn(1, LENGTH, HIDDEN, generator=generator(0, "mixed precision"))

    def run(block: torch.nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        output = run_block(block, hidden.to(dtype), block_arguments(folder, index, LENGTH, dtype, "cpu"))
        return output, *torch.autograd.grad((output - hidden).float().square().sum(), list(block.parameters()))

    expected = run(block)
    plain = run(load_block(folder, index, torch.bfloat16, "cpu"), torch.bfloat16)
    fused = FusedCalls(monkeypatch)
    with mixed_precision(block):
        found = run(block)
    fused.hold(family)
    if family == "gemma3_text":
        assert windows == [8 if index == 0 else 0]
    for name, ours, rounded, exact in zip(
        ("output", *dict(block.named_parameters())), found, plain, expected, strict=True
    ):
        assert ours.dtype == torch.float32, name
        error, usual = (float((each - exact).detach().norm() / exact.detach().norm()) for each in (ours, rounded))
        assert error < 1.5 * usual < 0.04, name
        assert error < max(0.02, 1.25 * usual), name
        assert name != "output" or error < 0.008


@pytest.mark.parametrize("biased", [False, True])
def test_gemmas_norms_stay_as_they_are_after_products_with_a_bias(biased: bool) -> None:
    """Such a product is float32, and so is what Gemma's norm then adds to the residual stream."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    block = Gemma3DecoderLayer(Gemma3TextConfig(**sizes, head_dim=8, attention_bias=biased), 0)
    norms = [part for part in block.modules() if type(part).__name__ == "Gemma3RMSNorm"]
    with mixed_precision(block):
        assert [("forward" in vars(norm)) for norm in norms] == 6 * [not biased]
        assert "forward" in vars(block.mlp)
    assert not any("forward" in vars(part) for part in block.modules())
