"""The Triton kernels beside the beam search, through Triton's interpreter, against their plain twins."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.7", reason="needs Triton's interpreter, in a version that knows numpy 2.4")
if os.environ.get("TRITON_INTERPRET") != "1":
    # Read when Triton is first imported, which transformers may do, so only tests/conftest.py can set it in time.
    pytest.skip("TRITON_INTERPRET=1 is not set: the kernels run on CUDA (tests/gpu)", allow_module_level=True)

from oaem.quantization.kernels.cuda.clusters import best_entries_triton, best_entry_sums_triton, sums_by_code_triton
from oaem.quantization.kernels.cuda.layer_loss import (
    dequantize_gradients_triton,
    dequantize_triton,
    loss_and_gradients_triton,
    split_hessian,
)
from oaem.quantization.kernels.cuda.m_step import adam_m_step_triton
from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes
from tests.unit.quantization.toy_layers import toy_layer

SHAPES = [(8, 64), (6, 16), (16, 32)]  # g, K


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    groups = torch.stack([book[codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
    return groups.flatten(1) * row_scales[:, None]


@pytest.mark.parametrize(("group_size", "size"), SHAPES)
def test_best_entries_and_their_sums(group_size: int, size: int) -> None:
    vectors, maps, offsets = randn(2, 70, group_size), randn(2, group_size, size, seed=1), randn(2, size, seed=2)
    scores = offsets[:, None] + vectors @ maps
    codes = best_entries_triton(vectors, maps, offsets)
    assert torch.equal(codes, scores.argmin(2).int())
    sums, counts = best_entry_sums_triton(vectors[0], maps[0], offsets[0])
    labels = scores[0].argmin(1)
    assert torch.equal(counts, torch.bincount(labels, minlength=size))
    torch.testing.assert_close(sums, torch.zeros(size, group_size).index_add_(0, labels, vectors[0]))


def test_the_lowest_of_equal_entries_wins() -> None:
    assert not best_entries_triton(randn(1, 40, 4), torch.zeros(1, 4, 16), torch.zeros(1, 16)).any()


@pytest.mark.parametrize(("group_size", "size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_sums_by_code(group_size: int, size: int, dtype: torch.dtype) -> None:
    codes = torch.randint(0, size, (5, 9, 2), generator=torch.Generator().manual_seed(3)).to(dtype)
    values, row_scales = randn(5, 9 * group_size), randn(5, seed=1)
    groups = (values * row_scales[:, None]).view(-1, group_size)
    expected = [torch.zeros(size, group_size).index_add_(0, codes[..., m].flatten().long(), groups) for m in range(2)]
    torch.testing.assert_close(sums_by_code_triton(values, row_scales, codes, size), torch.stack(expected))
    torch.testing.assert_close(SortedCodes(codes, size).sums(values, row_scales), torch.stack(expected))


def test_sorted_sums_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.CHUNK", 1)
    monkeypatch.setattr("oaem.quantization.kernels.cuda.sorted_sums.MEAN_SEGMENT", 4)
    codes = torch.randint(0, 3, (7, 11, 2), generator=torch.Generator().manual_seed(3))
    codes[codes == 1] = 2  # a code that never occurs
    order = SortedCodes(codes, 4)
    assert order.shape == (5, 2, 4)  # 77 groups in chunks of 16
    groups = randn(77, 8)
    expected = [torch.zeros(4, 8).index_add_(0, codes[..., m].flatten(), groups) for m in range(2)]
    found = order.sums(groups.view(7, 88).bfloat16(), torch.ones(7))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-2, atol=1e-1)
    torch.testing.assert_close(order.sums(groups.view(7, 88), torch.ones(7)), torch.stack(expected))


@pytest.mark.parametrize(("group_size", "size"), SHAPES)
def test_loss_dense_matrix_and_gradients(group_size: int, size: int) -> None:
    weight, hessian, codes, codebooks, row_scales = toy_layer(3, 3 * group_size, 2, int(math.log2(size)), group_size)
    codebooks.requires_grad_()
    row_scales.requires_grad_()
    matrix = dense(codes, codebooks, row_scales)
    difference = matrix - weight
    expected = ((difference @ hessian) * difference).sum() / len(weight)
    table, slopes = torch.autograd.grad(expected, (codebooks, row_scales), retain_graph=True)
    values = (codes, codebooks.detach(), row_scales.detach())
    order = SortedCodes(codes, size)
    loss, table_found, slopes_found = loss_and_gradients_triton(
        weight, split_hessian(hessian), codes, order, *values[1:]
    )
    # Operands are split into two bfloat16 halves: 16 bits of mantissa.
    assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    assert float((table_found - table).norm() / table.norm()) < 1e-4
    assert float((slopes_found - slopes).norm() / slopes.norm()) < 1e-4
    torch.testing.assert_close(dequantize_triton(*values), matrix.detach())
    torch.testing.assert_close(dequantize_triton(*values, torch.bfloat16), matrix.detach().bfloat16())
    incoming = randn(*matrix.shape)
    expected_gradients = torch.autograd.grad(matrix, (codebooks, row_scales), incoming)
    for found, wanted in zip(dequantize_gradients_triton(incoming, *values), expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_m_step_takes_the_steps_of_adam() -> None:
    roots = randn(3, 6, 6).double()
    curvature, pull, centroids = roots @ roots.transpose(1, 2), randn(3, 6, seed=1).double(), randn(3, 6, seed=2)
    rates, scale = [0.1, 0.05, 0.01], 0.25
    values = centroids.double().requires_grad_()
    optimizer = torch.optim.Adam([values], betas=(0.9, 0.999), eps=1e-8)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        values.grad = scale * (torch.einsum("kij,kj->ki", curvature, values.detach()) - pull)
        optimizer.step()
    found = adam_m_step_triton(curvature, pull, centroids, scale, rates, (0.9, 0.999), 1e-8)
    torch.testing.assert_close(found, values.detach().float())
