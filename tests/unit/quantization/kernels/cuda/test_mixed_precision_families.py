"""What a block of each family computes while it is tuned on a CUDA device; nothing here is quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from oaem.models.attention_switch import sliding_mask
from oaem.models.capture import block_arguments, run_block
from oaem.models.load import load_block
from oaem.quantization.kernels.cuda import attention as causal_attention
from oaem.quantization.kernels.cuda.mixed_precision import mixed_precision
from oaem.runtime.seeds import generator
from tests.conftest import FAMILIES, HIDDEN

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
    """Outputs to 0.8 %, gradients to 2 %: bfloat16 rounds by 0.2 % in the mean, and a gradient goes through dozens.

    A norm that took its weight for another thing (Gemma's multiply by 1 + weight) would be off by tens of percents.
    """
    windows: list[int] = []
    monkeypatch.setattr(causal_attention, "causal_attention", lambda *a: windows.append(a[-1]) or attend(*a))
    folder = tiny_model(family, True)
    block = load_block(folder, index, torch.float32, "cpu")
    arguments = block_arguments(folder, index, LENGTH, torch.float32, "cpu")
    hidden = torch.randn(1, LENGTH, HIDDEN, generator=generator(0, "mixed precision"))

    def run() -> tuple[Tensor, ...]:
        output = run_block(block, hidden, arguments)
        return output, *torch.autograd.grad((output - hidden).square().sum(), list(block.parameters()))

    expected = run()
    with mixed_precision(block):
        found = run()
    if family == "gemma3_text":
        assert windows == [8 if index == 0 else 0]
    for name, ours, exact in zip(("output", *dict(block.named_parameters())), found, expected, strict=True):
        assert ours.dtype == torch.float32, name
        bound = 0.008 if name == "output" else 0.02
        assert float((ours - exact).detach().norm() / exact.detach().norm()) < bound, name
