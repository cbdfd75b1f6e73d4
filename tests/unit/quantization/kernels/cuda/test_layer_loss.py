"""The layer's loss and the dense matrix in Triton, through Triton's interpreter, against their plain twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("tests.unit.interpreter")

from oaem.quantization.kernels.cuda.layer_loss import (
    SplitLayerLoss,
    dequantize_gradients_triton,
    dequantize_triton,
)
from oaem.quantization.layer_loss import layer_loss
from tests.unit.interpreter import randn
from tests.unit.quantization.toy_layers import toy_layer

SHAPES = [(8, 64), (6, 16), (16, 32)]  # g, K


def dense(codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    groups = torch.stack([book[codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
    return groups.flatten(1) * row_scales[:, None]


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
    loss, table_found, slopes_found = SplitLayerLoss(weight, hessian, codes, size).value(*values[1:])
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


@pytest.mark.parametrize(("bits", "group_size"), [(4, 8), (3, 3), (9, 12)])
def test_prepared_for_many_evaluations_at_any_size_of_codebook(bits: int, group_size: int) -> None:
    """Codebooks of eight entries and of 512, too, for which clustering has no kernels."""
    layer = toy_layer(3, 24, 2, bits, group_size)
    fast, plain = SplitLayerLoss(*layer[:3], 2**bits), layer_loss.oracle(*layer[:3], 2**bits)
    torch.testing.assert_close(dequantize_triton(*layer[2:]), dense(*layer[2:]))
    for found, expected in zip(fast.value(*layer[3:]), plain.value(*layer[3:]), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    gradient = randn(3, 24)
    torch.testing.assert_close(fast.gather(gradient), plain.gather(gradient))
