from __future__ import annotations

import pytest
import torch

from oaem.errors import UserError
from oaem.quantization import hessian
from oaem.quantization.hessian import HessianAccumulator


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_streamed_float32_products_equal_one_float64_product() -> None:
    """Relative to the diagonal, float32 blocks summed in float64 are off by less than 1e-6."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 5000, 24, generator=generator) * torch.logspace(-3, 2, 24) + 0.5
    accumulator = HessianAccumulator(24)
    for sequence in inputs:
        accumulator.update(sequence[None])
    flat = inputs.flatten(0, 1).double()
    exact = flat.T @ flat / 15000
    size = exact.diagonal().sqrt()
    assert accumulator.tokens == 15000
    assert ((accumulator.finish() - exact).abs() / torch.outer(size, size)).max() < 1e-6


@pytest.mark.parametrize("width", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_half_of_the_product_serves_for_the_other(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype
) -> None:
    """300 roundings of 2^-24 bound the error of a float32 sum of as many squares of size 1."""
    monkeypatch.setattr(hessian, "STRIP", 4)
    inputs = torch.randn(300, width, dtype=torch.float64).to(dtype)
    accumulator = HessianAccumulator(width)
    accumulator.update(inputs)
    exact = inputs.float().double()
    torch.testing.assert_close(accumulator.finish().double(), exact.T @ exact / 300, rtol=0, atol=300 * 2**-24)


def test_bfloat16_inputs_are_widened_first() -> None:
    inputs = torch.randn(64, 8).bfloat16()
    accumulator = HessianAccumulator(8, "cpu")
    accumulator.update(inputs)
    torch.testing.assert_close(accumulator.finish(), inputs.float().T @ inputs.float() / 64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    inputs = torch.randn(2, 10, 8)
    inputs[1, 4, 3] = bad
    with pytest.raises(UserError, match="not finite"):
        HessianAccumulator(8).update(inputs)


def test_no_inputs_are_refused() -> None:
    with pytest.raises(UserError, match="no calibration inputs"):
        HessianAccumulator(8).finish()
