"""From the gradient of a dense matrix to those of the codebooks and row scales it comes from, compiled for the CPU.

One kernel for codebook steps, block tuning and PV-tuning: one pass over the gradient, sums in float64.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from oaem.numerics.chunks import for_each_chunk

ROWS, CHUNKS = 256, 16  # Rows summed on their own, more where there would be more chunks, for each has its own table.


def weight_gradients_numba(
    gradient: Tensor, codes: Tensor, codebooks: Tensor, row_scales: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`weight.weight_gradients` times `factor`, rounded once to the dtypes of codebooks and row scales.

    The chunks depend on the shape alone, and their sums are added in order: the number of threads changes no bit.
    """
    rows = max(ROWS, -(-len(codes) // CHUNKS))
    starts = range(0, len(codes), rows)
    tables, slopes = np.zeros((len(starts), *codebooks.shape)), np.zeros(len(codes))
    groups = gradient.reshape(*codes.shape[:2], -1)
    arrays = [_array(groups), codes.contiguous().numpy(), _array(codebooks), _array(row_scales)]
    lanes, books = (0,) * codebooks.shape[2], (0,) * len(codebooks)

    def work(start: int) -> None:
        _sum_by_code(start, min(start + rows, len(codes)), lanes, books, *arrays, tables[start // rows], slopes)

    for_each_chunk(work, starts)
    return (
        (torch.from_numpy(tables.sum(axis=0)) * factor).to(codebooks.dtype),
        (torch.from_numpy(slopes) * factor).to(row_scales.dtype),
    )


def _array(values: Tensor) -> np.ndarray:
    """float32 or float64; numpy has no bfloat16."""
    values = values.detach().contiguous()
    return (values if values.dtype in (torch.float32, torch.float64) else values.float()).numpy()


@numba.njit(cache=True, nogil=True, fastmath={"nsz", "contract", "reassoc"})
def _sum_by_code(start, stop, lanes, books, gradient, codes, codebooks, scales, tables, slopes):  # type: ignore[no-untyped-def]
    """Add each group's scaled gradient to the entries that code it; a scale's is its row times what the codes say.

    gradient: [out, in/g, g]. The lengths of `lanes`, g, and `books`, M, are part of their types, so that the compiler
    unrolls the loops over them.
    """
    for row in range(start, stop):
        slope, scale = 0.0, np.float64(scales[row])
        for j in range(codes.shape[1]):
            for i in range(len(lanes)):
                entry = codebooks[0, codes[row, j, 0], i]
                for m in range(1, len(books)):
                    entry += codebooks[m, codes[row, j, m], i]
                slope += np.float64(gradient[row, j, i]) * entry
            for m in range(len(books)):
                code = codes[row, j, m]
                for i in range(len(lanes)):
                    tables[m, code, i] += np.float64(gradient[row, j, i]) * scale
        slopes[row] = slope
