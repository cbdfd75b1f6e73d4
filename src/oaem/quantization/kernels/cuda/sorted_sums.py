"""Sums of weight groups by code for codes that serve many sums, as in block tuning; for CUDA devices.

`clusters.py` multiplies by one-hot matrices and needs nothing but the codes. Where the codes stay as they are for
hundreds of steps it pays to sort them once: a sum then reads every number once for each codebook and adds it, without
any product. Groups are sorted within chunks that the second-level cache holds, so the reads that jump stay on the chip.
The order of every sum is fixed, so every run gives the same bits.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from copy import copy

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 2**15  # groups that are sorted together: 1 MB of float32 for groups of eight
MEAN_SEGMENT = 128  # groups of a code in a chunk, at least: large codebooks take larger chunks
TILE = 64  # groups at a time
CHUNKS = 16  # parts of a sum at a time


@triton.jit
def _sum_segments(
    values, scales, places, starts, sums, row_groups, g: tl.constexpr, G: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sum [g] of the groups of one segment of `places`, times their row's scale."""
    segment = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, G)
    begin, end = tl.load(starts + segment), tl.load(starts + segment + 1)
    total = tl.zeros((N, G), tl.float32)
    for first in range(begin, end, N):
        n = first + tl.arange(0, N)
        inside = n < end
        place = tl.load(places + n, mask=inside, other=0)
        scale = tl.load(scales + place // row_groups, mask=inside, other=0.0)
        group = tl.load(
            values + place.to(tl.int64)[:, None] * g + i[None, :], mask=inside[:, None] & (i < g)[None, :], other=0.0
        )
        total += group.to(tl.float32) * scale[:, None]
    tl.store(sums + segment * g + i, tl.sum(total, axis=0), mask=i < g)


@triton.jit
def sum_over_chunks(partial, i, inside, chunks, numbers, C: tl.constexpr):
    """Sums in float64, rounded to float32 at the end, of the numbers `i` [N] over partial [chunks, numbers]."""
    total = tl.zeros_like(i).to(tl.float64)
    for start in range(0, chunks, C):
        c = start + tl.arange(0, C)
        part = tl.load(
            partial + c[:, None] * numbers + i[None, :], mask=(c < chunks)[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(part.to(tl.float64), axis=0)
    return total.to(tl.float32)


@triton.jit
def _add_chunks(partial, result, chunks, numbers, N: tl.constexpr, C: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(result + i, sum_over_chunks(partial, i, i < numbers, chunks, numbers, C), mask=i < numbers)


class SortedCodes:
    """Where the groups of every code lie. codes: any integers [out, in/g, M] below `codebook_size`.

    The rows of several `layers` in one have codes that count through all codebooks: those of layer l are M K l higher.
    """

    def __init__(self, codes: Tensor, codebook_size: int, layers: int = 1):
        out, self.row_groups, num_codebooks = codes.shape
        groups, entries = out * self.row_groups, layers * num_codebooks * codebook_size
        chunk = max(CHUNK, MEAN_SEGMENT * codebook_size)
        chunks = triton.cdiv(groups, chunk)
        books = (num_codebooks, codebook_size)
        self.shape = (chunks, *books) if layers == 1 else (chunks, layers, *books)
        place = torch.arange(groups, dtype=torch.int32, device=codes.device)[:, None]
        first = codebook_size * torch.arange(num_codebooks, dtype=torch.int32, device=codes.device)
        segment = (place // chunk * entries + first + codes.view(groups, -1).to(torch.int32)).flatten()
        self.places = (segment.argsort(stable=True) // num_codebooks).to(torch.int32)
        counts = torch.bincount(segment, minlength=chunks * entries)
        self.starts = torch.zeros(len(counts) + 1, dtype=torch.int32, device=codes.device)
        self.starts[1:] = counts.cumsum(0)

    def sums(self, values: Tensor, row_scales: Tensor) -> Tensor:
        """Sums [M, K, g], for several layers [layers, M, K, g], of row_scales[o] * values[o, group], by code.

        values: floating point [out, in]. row_scales: float32 [out].
        """
        partial = self.partial_sums(values, row_scales)
        if len(partial) == 1:
            return partial[0]
        total = torch.empty_like(partial[0])
        _add_chunks[(triton.cdiv(total.numel(), TILE),)](partial, total, len(partial), total.numel(), N=TILE, C=CHUNKS)
        return total

    def partial_sums(self, values: Tensor, row_scales: Tensor) -> Tensor:
        """The same for each chunk of groups by itself, [chunks, …, M, K, g]."""
        values = values.contiguous()
        group_size = values.shape[1] // self.row_groups
        partial = torch.empty(*self.shape, group_size, device=values.device)
        _sum_segments[(len(self.starts) - 1,)](
            values, row_scales.contiguous(), self.places, self.starts, partial, self.row_groups,
            g=group_size, G=triton.next_power_of_2(group_size), N=TILE, num_warps=1,
        )  # fmt: skip
        return partial

    def twin(self) -> SortedCodes:
        """The same in tensors of its own."""
        twin = copy(self)
        twin.places, twin.starts = self.places.clone(), self.starts.clone()
        return twin

    def take(self, other: SortedCodes) -> None:
        """Become `other`, of codes of the same shape, in the tensors that are there."""
        self.places.copy_(other.places)
        self.starts.copy_(other.starts)
