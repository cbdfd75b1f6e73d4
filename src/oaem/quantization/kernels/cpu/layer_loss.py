"""The passes of a codebook step before and after its product, for the CPU: each reads the matrix once.

As separate tensor operations they take as long as the product itself.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.chunks import for_each_chunk
from oaem.numerics.product import matrix_product
from oaem.quantization.kernels.cpu.weight_gradients import weight_gradients_numba
from oaem.quantization.layer_loss import LayerLoss

ROWS = 256  # a chunk


class CompiledLayerLoss(LayerLoss):
    """`layer_loss.LayerLoss` in float32."""

    def value(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `layer_loss.LayerLoss.value`."""
        return loss_and_gradients_numba(self.weight, self.hessian, self.codes, codebooks, row_scales)


def loss_and_gradients_numba(
    weight: Tensor, hessian: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients for codebooks [M, K, g] and row scales [out], as `LayerLoss.value` defines them.

    weight [out, in], hessian [in, in], codebooks and scales in float32 on the CPU; codes [out, in/g, M].
    """
    difference = _difference(weight, codes, codebooks, row_scales)
    product = matrix_product(difference, hessian)
    loss = _inner(product.numpy().ravel(), difference.numpy().ravel()) / len(weight)
    gradients = weight_gradients_numba(product, codes, codebooks, row_scales, factor=2 / len(weight))
    return torch.tensor(loss, dtype=torch.float64), *gradients


def _difference(weight: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor) -> Tensor:
    """W^ - W [out, in]."""
    difference = torch.empty(weight.shape)
    tensors = codes, codebooks, row_scales, weight.view(*codes.shape[:2], -1), difference.view(*codes.shape[:2], -1)
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    lanes = (0,) * codebooks.shape[2]
    for_each_chunk(
        lambda start: _fill_difference(start, min(start + ROWS, len(codes)), lanes, *arrays),
        range(0, len(codes), ROWS),
    )
    return difference


@numba.njit(cache=True, nogil=True)
def _fill_difference(start, stop, lanes, codes, codebooks, row_scales, weight, difference):  # type: ignore[no-untyped-def]
    """Rows `start` to `stop` of W^ - W, in groups [out, in/g, g]; `lanes` is as in `_sum_by_code`."""
    for row in range(start, stop):
        for j in range(codes.shape[1]):
            code = codes[row, j, 0]
            for i in range(len(lanes)):
                difference[row, j, i] = codebooks[0, code, i]
        for m in range(1, len(codebooks)):
            for j in range(codes.shape[1]):
                code = codes[row, j, m]
                for i in range(len(lanes)):
                    difference[row, j, i] += codebooks[m, code, i]
        for j in range(codes.shape[1]):
            for i in range(len(lanes)):
                difference[row, j, i] = difference[row, j, i] * row_scales[row] - weight[row, j, i]


@numba.njit(cache=True, nogil=True, fastmath={"nsz", "contract", "reassoc"})
def _inner(left, right):  # type: ignore[no-untyped-def]
    """The inner product of two vectors, in float64."""
    total = 0.0
    for n in range(len(left)):
        total += np.float64(left[n]) * right[n]
    return total
