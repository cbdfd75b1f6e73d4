"""The passes of a codebook step before and after its product, for the CPU: each reads the matrix once.

As separate tensor operations they take as long as the product itself. Rows are walked in order, so equal inputs give
equal bits; the sums by code and by row are kept in float64.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.product import matrix_product
from oaem.quantization.layer_loss import LayerLoss


class CompiledLayerLoss(LayerLoss):
    """`layer_loss.LayerLoss` in float32."""

    def value(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `layer_loss.LayerLoss.value`."""
        return loss_and_gradients_numba(self.weight, self.hessian, self.codes, codebooks, row_scales)


def loss_and_gradients_numba(
    weight: Tensor, hessian: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients for codebooks [M, K, g] and row scales [out], as `LayerLoss.value` defines them.

    weight [out, in], hessian [in, in], codebooks and scales in float32 on the CPU; codes [out, in/g, M] contiguous.
    """
    entries, difference = torch.empty_like(weight), torch.empty_like(weight)
    given = [tensor.contiguous().numpy() for tensor in (codes, codebooks, row_scales)]
    _difference(*given, weight.numpy(), entries.numpy(), difference.numpy())
    product = matrix_product(difference, hessian)
    tables, slopes = np.zeros(codebooks.shape), np.zeros(len(weight))
    scale = 2 / len(weight)
    loss = _gather(product.numpy(), difference.numpy(), entries.numpy(), given[0], given[2], tables, slopes)
    return (
        torch.tensor(loss / len(weight), dtype=torch.float64),
        (torch.from_numpy(tables) * scale).to(codebooks.dtype),
        (torch.from_numpy(slopes) * scale).to(row_scales.dtype),
    )


@numba.njit(cache=True, nogil=True)
def _difference(codes, codebooks, row_scales, weight, entries, difference):  # type: ignore[no-untyped-def]
    """Fill entries = what the codes stand for and difference = W^ - W, both [out, in]."""
    rows, groups, num_codebooks = codes.shape
    group_size = codebooks.shape[2]
    for row in range(rows):
        for j in range(groups):
            for i in range(group_size):
                total = codebooks[0, codes[row, j, 0], i]
                for m in range(1, num_codebooks):
                    total += codebooks[m, codes[row, j, m], i]
                entries[row, j * group_size + i] = total
        for column in range(weight.shape[1]):
            difference[row, column] = entries[row, column] * row_scales[row] - weight[row, column]


@numba.njit(cache=True, nogil=True, fastmath={"nsz", "contract", "reassoc"})
def _gather(product, difference, entries, codes, row_scales, tables, slopes):  # type: ignore[no-untyped-def]
    """Add s * product into `tables` [M, K, g] by code and product . entries into `slopes`; returns the trace."""
    rows, groups, num_codebooks = codes.shape
    group_size = tables.shape[2]
    scaled = np.empty(product.shape[1])
    trace = 0.0
    for row in range(rows):
        error, slope = 0.0, 0.0
        for column in range(product.shape[1]):
            value = np.float64(product[row, column])
            error += value * difference[row, column]
            slope += value * entries[row, column]
            scaled[column] = value * row_scales[row]
        trace += error
        slopes[row] = slope
        for j in range(groups):
            for m in range(num_codebooks):
                code = codes[row, j, m]
                for i in range(group_size):
                    tables[m, code, i] += scaled[j * group_size + i]
    return trace
