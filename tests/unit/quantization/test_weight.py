from __future__ import annotations

import pytest
import torch

from oaem.quantization.kernels.cpu import weight_gradients as weight_gradients_cpu
from oaem.quantization.weight import (
    AdditiveWeight,
    dequantize,
    normalised_groups,
    output_error,
    relative_error,
    row_scales_of,
    weight_gradients,
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


def case(m: int, size: int, width: int, out: int = 12) -> tuple[torch.Tensor, ...]:
    """The gradient of a dense matrix in float64, and the codes, codebooks and row scales that it comes from."""
    draws = torch.Generator().manual_seed(m * size + width)
    codes = torch.randint(size, (out, 9, m), generator=draws)
    codebooks = torch.randn(m, size, width, generator=draws, dtype=torch.float64)
    row_scales = torch.rand(out, generator=draws, dtype=torch.float64) + 0.5
    gradient = torch.randn(out, 9 * width, generator=draws, dtype=torch.float64)
    return gradient, codes.to(torch.uint8 if size <= 256 else torch.uint16), codebooks, row_scales


def plain_gradients(
    gradient: torch.Tensor, codes: torch.Tensor, codebooks: torch.Tensor, row_scales: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """autograd's, through plain indexing."""
    codebooks, row_scales = codebooks.clone().requires_grad_(), row_scales.clone().requires_grad_()
    plain = sum(codebooks[m][codes[..., m].long()] for m in range(len(codebooks))).flatten(1) * row_scales[:, None]
    return torch.autograd.grad(plain, (codebooks, row_scales), gradient)


@pytest.mark.parametrize(("m", "size", "width"), [(1, 4, 2), (2, 256, 8), (3, 64, 6), (2, 300, 4)])
def test_gradients_equal_autograd_through_plain_indexing(m: int, size: int, width: int) -> None:
    gradient, codes, codebooks, row_scales = case(m, size, width)
    wanted = plain_gradients(gradient, codes, codebooks, row_scales)
    torch.testing.assert_close(weight_gradients(gradient, codes, codebooks, row_scales), wanted, rtol=1e-12, atol=1e-12)
    # A gradient that autograd hands over need not be contiguous.
    views = gradient.t().contiguous().t(), codes.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(weight_gradients(*views, codebooks, row_scales), wanted, rtol=1e-12, atol=1e-12)
    leaves = codebooks.requires_grad_(), row_scales.requires_grad_()
    found = torch.autograd.grad(dequantize(codes, *leaves), leaves, gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_gradients_are_as_exact_as_their_dtype(dtype: torch.dtype, tolerance: float) -> None:
    """Sums in float64, rounded once: relative to the largest entry, where sums in float32 would be off by more."""
    gradient, codes, *parameters = case(2, 16, 4)
    given = gradient.to(dtype), codes, *(parameter.to(dtype) for parameter in parameters)
    exact = plain_gradients(*(part.double() if part.is_floating_point() else part for part in given))
    for part, reference in zip(weight_gradients(*given), exact, strict=True):
        assert part.dtype == dtype
        assert float((part - reference).abs().max()) <= tolerance * float(reference.abs().max())


@pytest.mark.parametrize(("rows", "chunks"), [(5, 16), (1, 3), (256, 16)])
def test_chunks_sum_to_the_whole_and_threads_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, rows: int, chunks: int
) -> None:
    monkeypatch.setattr(weight_gradients_cpu, "ROWS", rows)
    monkeypatch.setattr(weight_gradients_cpu, "CHUNKS", chunks)
    given = case(2, 16, 4)
    found = weight_gradients(*given)
    torch.testing.assert_close(found, plain_gradients(*given), rtol=1e-12, atol=1e-12)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = weight_gradients(*given)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


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
