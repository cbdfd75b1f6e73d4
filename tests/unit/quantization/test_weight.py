from __future__ import annotations

import pytest
import torch

from oaem.quantization.weight import (
    AdditiveWeight,
    dequantize,
    normalised_groups,
    output_error,
    relative_error,
    row_scales_of,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_dequantize_spelt_out() -> None:
    codes = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [0, 2]]], dtype=torch.uint8)
    codebooks, row_scales = torch.randn(2, 3, 4), torch.tensor([2.0, 0.5])
    dense = AdditiveWeight(codes, codebooks, row_scales).dequantize()
    for row in range(2):
        for group in range(2):
            expected = sum(codebooks[m, int(codes[row, group, m])] for m in range(2)) * row_scales[row]
            torch.testing.assert_close(dense[row, 4 * group : 4 * group + 4], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_codes_of_any_integer_dtype(dtype: torch.dtype) -> None:
    codes = torch.randint(0, 16, (3, 5, 2))
    codebooks, row_scales = torch.randn(2, 16, 4), torch.rand(3)
    assert torch.equal(dequantize(codes.to(dtype), codebooks, row_scales), dequantize(codes, codebooks, row_scales))


def test_gradient_equals_autograd_through_plain_indexing() -> None:
    codes = torch.randint(0, 8, (6, 5, 3))
    codebooks = torch.randn(3, 8, 4, dtype=torch.float64, requires_grad=True)
    row_scales = torch.rand(6, dtype=torch.float64, requires_grad=True)
    factor = torch.randn(6, 20, dtype=torch.float64)
    plain = sum(codebooks[m][codes[..., m]] for m in range(3)).flatten(1) * row_scales[:, None]
    ours = dequantize(codes, codebooks, row_scales)
    torch.testing.assert_close(ours, plain)
    for first, second in zip(
        torch.autograd.grad((ours * factor).sum(), (codebooks, row_scales)),
        torch.autograd.grad((plain * factor).sum(), (codebooks, row_scales)),
        strict=True,
    ):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_row_scales_and_normalised_groups() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0
    row_scales = row_scales_of(weight)
    assert row_scales[1] == pytest.approx(1e-9)
    groups = normalised_groups(weight, row_scales, 4)
    assert groups.shape == (3, 2, 4)
    torch.testing.assert_close(groups.flatten(1).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(groups.flatten(1) * row_scales[:, None], weight)


def test_errors_equal_the_error_of_the_outputs() -> None:
    inputs, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    quantized = weight + 0.1 * torch.randn(3, 8, dtype=torch.float64)
    hessian = inputs.T @ inputs / 50
    lost = ((inputs @ (quantized - weight).T) ** 2).sum() / 50
    assert output_error(quantized - weight, hessian) == pytest.approx(float(lost))
    energy = ((inputs @ weight.T) ** 2).sum() / 50
    assert relative_error(weight, quantized, hessian) == pytest.approx(float(lost / energy))


def test_relative_error_without_energy() -> None:
    zero, hessian = torch.zeros(2, 4), torch.eye(4)
    assert relative_error(zero, zero, hessian) == 0
    assert relative_error(torch.ones(2, 4), zero, torch.zeros(4, 4)) == 0
    assert relative_error(zero, torch.ones(2, 4), hessian) == float("inf")
