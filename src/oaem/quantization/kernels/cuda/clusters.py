"""Assignment of vectors to entries and sums by entry, for CUDA devices: the fast twins of `clusters.py`.

Sums by code are products with one-hot matrices: a tensor core adds a tile of vectors to all entries at once, in a fixed
order, so the bits are the same on every run; atomic additions would not be. A float32 number is split into three
bfloat16 parts that hold all its bits, and one-hot entries are exact: nothing is lost but the float32 sums' rounding.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264  # that share the vectors of one sum: two for each multiprocessor of an H100; decides its rounding
TILE = 32  # vectors at a time


@triton.jit
def _add_up(sums, code, vectors, part, K: tl.constexpr, OPERAND: tl.constexpr):
    """sums [K, 4 G] plus vectors [N, 4 G], four times the same, by code [N].

    The columns of `part` 0, 1 and 2 sum the high, middle and low bits, those of part 3 count.
    """
    chosen = tl.where(tl.arange(0, K)[:, None] == code[None, :], 1.0, 0.0).to(OPERAND)
    high = vectors.to(tl.bfloat16).to(tl.float32)
    middle = (vectors - high).to(tl.bfloat16).to(tl.float32)
    low = vectors - high - middle
    bits = tl.where(part == 0, high, tl.where(part == 1, middle, tl.where(part == 2, low, 1.0)))
    return tl.dot(chosen, bits.to(OPERAND), sums)


@triton.jit
def _assign(
    vectors, maps, offsets, codes, sums, count,
    K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, D: tl.constexpr, N: tl.constexpr, SUM: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Best entry of every vector of one group [count, g]: either the codes, or sums by code [programs, K, 4 G]."""
    j, k, d = tl.program_id(1).to(tl.int64), tl.arange(0, K), tl.arange(0, D)
    c = tl.arange(0, 4 * G)
    vectors += j * count * g
    table = tl.load(maps + (j * g + d[:, None]) * K + k[None, :], mask=(d < g)[:, None], other=0.0)
    offset = tl.load(offsets + j * K + k)
    total = tl.zeros((K, 4 * G), tl.float32)
    for start in range(tl.program_id(0) * N, count, tl.num_programs(0) * N):
        n = start + tl.arange(0, N)
        inside = n < count
        real = inside[:, None] & (d < g)[None, :]
        vector = tl.load(vectors + n[:, None] * g + d[None, :], mask=real, other=0.0)
        score = tl.dot(vector, table, tl.zeros((N, K), tl.float32) + offset[None, :], input_precision="tf32x3")
        best = tl.min(score, axis=1)
        code = tl.min(tl.where(score == best[:, None], k[None, :], K - 1), axis=1)
        if SUM:
            again = tl.load(
                vectors + n[:, None] * g + c[None, :] % G, mask=inside[:, None] & (c % G < g)[None, :], other=0.0
            )
            # Vectors beyond the end go to no entry.
            total = _add_up(total, tl.where(inside, code, K), again, (c // G)[None, :], K, OPERAND)
        else:
            tl.store(codes + j * count + n, code, mask=inside)
    if SUM:
        tl.store(sums + (tl.program_id(0) * K + k)[:, None] * (4 * G) + c[None, :], total)


@triton.jit
def _sum_by_code(
    values, scales, codes, sums, count, row_groups,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, N: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """Sums [programs, M, K, 4 G] of the groups [count, g], times their row's scale, by code [count, M]."""
    m, k, c = tl.program_id(1), tl.arange(0, K), tl.arange(0, 4 * G)
    total = tl.zeros((K, 4 * G), tl.float32)
    for start in range(tl.program_id(0) * N, count, tl.num_programs(0) * N):
        n = start + tl.arange(0, N)
        inside = n < count
        code = tl.load(codes + n * M + m, mask=inside, other=K).to(tl.int32)
        scale = tl.load(scales + n // row_groups, mask=inside, other=0.0)
        vector = tl.load(
            values + n[:, None] * g + c[None, :] % G, mask=inside[:, None] & (c % G < g)[None, :], other=0.0
        )
        total = _add_up(total, code, vector * scale[:, None], (c // G)[None, :], K, OPERAND)
    tl.store(sums + ((tl.program_id(0) * M + m) * K + k)[:, None] * (4 * G) + c[None, :], total)


def best_entries_triton(vectors: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
    """See `clusters.best_entries`; float32, K from 16 to 256."""
    groups, count, _ = vectors.shape
    codes = torch.empty(groups, count, dtype=torch.int32, device=vectors.device)
    _assign[(triton.cdiv(count, TILE), groups)](
        vectors.contiguous(), maps.contiguous(), offsets.contiguous(), codes, codes, count,
        **_shape(vectors, maps.shape[2]), D=max(16, triton.next_power_of_2(vectors.shape[2])), SUM=False,
    )  # fmt: skip
    return codes


def best_entry_sums_triton(vectors: Tensor, maps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [K, g] and counts [K] of `vectors` [N, g] by their best entry, without writing the codes down.

    The best entry is argmin_k of offsets[k] + vectors[i] . maps[:, k], the lowest among equals; maps: [g, K].
    """
    count, group_size = vectors.shape
    programs = min(PROGRAMS, triton.cdiv(count, TILE))
    shape = _shape(vectors, maps.shape[1])
    sums = torch.empty(programs, maps.shape[1], 4, shape["G"], device=vectors.device)
    _assign[(programs, 1)](
        vectors.contiguous(), maps.contiguous(), offsets.contiguous(), sums, sums, count,
        **shape, D=max(16, triton.next_power_of_2(group_size)), SUM=True,
    )  # fmt: skip
    total = sums.sum(0, dtype=torch.float64)
    return total[:, :3, :group_size].sum(1).float(), total[:, 3, 0].long()


def sums_by_code_triton(values: Tensor, row_scales: Tensor, codes: Tensor, codebook_size: int) -> Tensor:
    """Sums [M, K, g] over all groups of row_scales[o] * values[o, group], by code.

    values: float32 [out, in]. row_scales: float32 [out]. codes: any integers [out, in/g, M]. K from 16 to 256.
    """
    out, row_groups, num_codebooks = codes.shape
    values = values.contiguous()
    group_size = values.shape[1] // row_groups
    programs = min(PROGRAMS, triton.cdiv(out * row_groups, TILE))
    shape = _shape(values.view(out * row_groups, group_size), codebook_size)
    sums = torch.empty(programs, num_codebooks, codebook_size, 4, shape["G"], device=values.device)
    _sum_by_code[(programs, num_codebooks)](
        values, row_scales.contiguous(), codes.contiguous(), sums, out * row_groups, row_groups,
        M=num_codebooks, **shape,
    )  # fmt: skip
    return sums.sum(0, dtype=torch.float64)[:, :, :3, :group_size].sum(2).float()


def _shape(vectors: Tensor, codebook_size: int) -> dict[str, Any]:
    """Compile-time constants; 4 G columns of a product must be at least 16."""
    group_size = vectors.shape[-1]
    # Triton's interpreter, which runs on the CPU, has no bfloat16 products: there float32 multiplies the same parts.
    operand = tl.bfloat16 if vectors.is_cuda else tl.float32
    padded = max(4, triton.next_power_of_2(group_size))
    return {"K": codebook_size, "g": group_size, "G": padded, "N": TILE, "OPERAND": operand}
