"""The mean squared error in Triton, through Triton's interpreter, against the formula in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.block_tuning import backward_squared_error
from oaem.quantization.kernels.cuda.squared_error import backward_squared_error_triton, squared_error_triton
from tests.unit.interpreter import randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5), (1, 40, 240)], ids=str)  # part of a tile; two tiles and a part
def test_error_and_gradient(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    output, target = (3 * randn(*shape, seed=seed) for seed in (0, 1))
    output = output.to(dtype)
    exact = output.double().requires_grad_()
    expected = (exact - target.bfloat16().double()).square().mean()
    expected.backward()
    error, gradient = squared_error_triton(output, target.bfloat16())
    assert (error.dtype, error.shape, gradient.dtype) == (torch.float64, (), dtype)
    torch.testing.assert_close(error, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-9)


def test_it_reaches_what_the_output_comes_from_as_the_formula_does() -> None:
    found = []
    for path in (backward_squared_error_triton, backward_squared_error.oracle):
        weight, inputs = randn(8, 6).requires_grad_(), randn(1, 9, 8, seed=1)
        weight.grad = torch.ones_like(weight)  # gradients are added
        found.append((path(inputs @ weight, randn(1, 9, 6, seed=2)), weight.grad))
        assert not found[-1][0].requires_grad
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6, check_dtype=False)
