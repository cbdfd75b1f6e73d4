"""From the gradient of a dequantised weight to those of its codebooks and scales, compiled for the CPU."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.chunks import for_each_chunk

ROWS = 256  # summed on their own: with chunks of fixed size the number of threads changes no bit


def weight_gradients_numba(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor
) -> tuple[Tensor, Tensor]:
    """`straight_through.weight_gradients` in one pass over the gradient, summed in float64."""
    starts = range(0, len(codes), ROWS)
    tables = np.zeros((len(starts), *codebooks.shape))
    scales_gradient = torch.empty_like(row_scales)
    groups = gradient.reshape(*codes.shape[:2], -1)
    arrays = [tensor.detach().contiguous().numpy() for tensor in (groups, codes, codebooks, row_scales)]
    lanes = (0,) * codebooks.shape[2]

    def work(start: int) -> None:
        stop = min(start + ROWS, len(codes))
        _sum_by_code(start, stop, lanes, *arrays, tables[start // ROWS], scales_gradient.numpy())

    for_each_chunk(work, starts)
    return torch.from_numpy(tables.sum(axis=0)).to(codebooks.dtype), scales_gradient


@numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _sum_by_code(start, stop, lanes, gradient, codes, codebooks, scales, tables, scales_gradient):  # type: ignore[no-untyped-def]
    """Add each group's scaled gradient to the entries that code it; a scale's is the product of its row with the sums.

    gradient: [out, in/g, g]. The length of `lanes`, g, is part of its type, so the compiler unrolls the loops over it.
    """
    for row in range(start, stop):
        along = 0.0
        for j in range(codes.shape[1]):
            for m in range(codebooks.shape[0]):
                k = codes[row, j, m]
                for i in range(len(lanes)):
                    slope = gradient[row, j, i]
                    tables[m, k, i] += slope * scales[row]
                    along += slope * codebooks[m, k, i]
        scales_gradient[row] = along
