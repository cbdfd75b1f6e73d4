"""Beam search for the CPU: compiled loops over the rows inside lazy blocks, one BLAS product between two blocks.

Columns are laid out in the reverse order of the walk, so that what is still to come is always a prefix. Within a lazy
block of consecutive groups only the block's own columns of R = (W - W^) H are kept current for each hypothesis; the
columns to come are updated at the block's end by one product, gathered by the hypothesis that each survivor descends
from. With r = R[group], s the row's scale and t = r + s H_jj C_m[old], the score of entry c is
s^2 c H_jj c - 2 s c t, up to a constant of the hypothesis.

Rows never interact. They are cut into fixed chunks, whatever the number of threads, so threads cannot change a bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from oaem.numerics.chunks import for_each_chunk
from oaem.numerics.product import matrix_product
from oaem.quantization.kernels.cpu.beam_search_walk import arrays, compile_walk, padded, trace_block, trace_codes
from oaem.quantization.search_order import SearchOrder
from oaem.quantization.weight import dequantize

LAZY_COLUMNS = 96  # Columns of a lazy block: enough for BLAS, few enough for the first-level cache.
ROW_CHUNK = 128
UNREACHABLE = 1e38  # The curvature of what fills a codebook up to whole vectors: no score can be worse.


@dataclass(frozen=True)
class _Walk:
    """One layer in the reverse order of the walk; place p is the p-th group from the end."""

    hessian: Tensor  # [in, in]
    entries: Tensor  # [M * g, K padded], codebooks with the entry last, for vector instructions
    curvature: Tensor  # [in/g, M, K padded], c H_jj c by place
    visits: Tensor  # [in/g, M], codebooks in the order of their visit by place
    codebook_size: int
    beam_width: int


@torch.no_grad()
def beam_search_numba(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    row_scales: Tensor,
    beam_width: int,
    order: SearchOrder,
) -> Tensor:
    """The codes [out, in/g, M] after one pass; arguments as in `beam_search.beam_search`. Uses torch's threads."""
    num_codebooks, codebook_size, group_size = codebooks.shape
    groups = order.groups.flip(0)
    columns = (groups[:, None] * group_size + torch.arange(group_size)).flatten()
    laid_out = hessian.float()[columns][:, columns].contiguous()
    tiles = laid_out.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    blocks = tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # H_jj [in/g, g, g]
    entries = codebooks.float()
    curvature = torch.stack([torch.einsum("ki,jil,kl->jk", table, blocks, table) for table in entries], dim=1)
    spare = (0, padded(codebook_size) - codebook_size)
    walk = _Walk(
        laid_out,
        functional.pad(entries.transpose(1, 2).reshape(num_codebooks * group_size, codebook_size), spare),
        functional.pad(curvature, spare, value=UNREACHABLE).contiguous(),
        order.codebooks.flip(0).contiguous(),
        codebook_size,
        beam_width,
    )
    difference = (weight - dequantize(codes, codebooks, row_scales)).float()[:, columns]
    scales = row_scales.float()
    old = codes.to(torch.int32)[:, groups]
    new = torch.empty_like(old)

    def search(start: int) -> None:
        rows = slice(start, start + ROW_CHUNK)
        new[rows] = _search_rows(walk, difference[rows], old[rows].contiguous(), scales[rows])

    for_each_chunk(search, range(0, len(weight), ROW_CHUNK))
    return torch.empty_like(codes).index_copy_(1, groups, new.to(codes.dtype))


def _search_rows(walk: _Walk, difference: Tensor, old: Tensor, scales: Tensor) -> Tensor:
    """The best codes [rows, in/g, M] of a chunk of rows; `difference` is W - W^ [rows, in], `old` the codes now."""
    rows, places, num_codebooks = old.shape
    group_size = len(walk.entries) // num_codebooks
    residual = matrix_product(difference, walk.hessian)  # R of every hypothesis [rows * hypotheses, columns to come]
    # Every step's beam as links (parent, choice) to the beam before it.
    links = torch.zeros(places, num_codebooks, rows, walk.beam_width, 2, dtype=torch.int32)
    objective = torch.zeros(rows, walk.beam_width)
    hypotheses, span = 1, max(1, LAZY_COLUMNS // group_size)
    columns = padded(span * group_size)
    walk_block = compile_walk(group_size, walk.codebook_size, columns)
    for stop in range(places, 0, -span):
        block = slice(max(stop - span, 0), stop)
        here, ahead = slice(block.start * group_size, stop * group_size), block.start * group_size
        inside = functional.pad(walk.hessian[here, here], (0, columns - (here.stop - here.start)))
        entries, curvature, visits, codes = arrays(
            walk.entries, walk.curvature[block], walk.visits[block], old[:, block]
        )
        scale, best, chain = arrays(scales, objective, links[block])
        walk_block(
            *arrays(residual[:, here], inside), entries, curvature, visits, codes, scale, best, chain, hypotheses
        )
        survivors = min(walk.beam_width, hypotheses * walk.codebook_size ** (num_codebooks * (stop - block.start)))
        change = torch.zeros(rows * survivors, here.stop - here.start)
        ancestors = torch.empty(rows * survivors, dtype=torch.int32)
        trace_block(entries, visits, codes, scale, chain, hypotheses, *arrays(change, ancestors))
        hypotheses = survivors
        residual = residual[:, :ahead].index_select(0, ancestors)
        residual -= matrix_product(change, walk.hessian[here, :ahead])
    new = torch.empty_like(old)
    trace_codes(*arrays(walk.visits, links, new))
    return new
