"""Re-encoding towards a straight-through buffer in two kernels, for CUDA devices: see `straight_through`."""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.quantization.weight import dequantize

TILE = 512  # groups of a program


@triton.jit
def _distance(
    buffer, codes, codebooks, scales, distances, row_groups, groups,
    M: tl.constexpr, K: tl.constexpr, g: tl.constexpr, G: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Squared distance of N groups of the buffer from what their codes stand for."""
    group = tl.program_id(0) * N + tl.arange(0, N)
    lane = tl.arange(0, G)
    inside = group < groups
    both = inside[:, None] & (lane < g)[None, :]
    value = tl.zeros((N, G), tl.float32)
    for m in tl.static_range(M):
        code = tl.load(codes + group.to(tl.int64) * M + m, mask=inside, other=0).to(tl.int32)
        value += tl.load(codebooks + (m * K + code[:, None]) * g + lane[None, :], mask=both, other=0.0)
    scale = tl.load(scales + group // row_groups, mask=inside, other=0.0)
    wanted = tl.load(buffer + group.to(tl.int64)[:, None] * g + lane[None, :], mask=both, other=0.0)
    difference = wanted - value * scale[:, None]
    tl.store(distances + group, tl.sum(difference * difference, axis=1), mask=inside)


def squared_distances_triton(codes: Tensor, codebooks: Tensor, row_scales: Tensor, buffer: Tensor) -> Tensor:
    """Of each group of `buffer` [out, in] from the dequantised weight: float32 [out * in/g], all float32."""
    groups, (num_codebooks, size, width) = codes[..., 0].numel(), codebooks.shape
    distances = torch.empty(groups, device=buffer.device)
    _distance[(triton.cdiv(groups, TILE),)](
        buffer.contiguous(), codes.contiguous(), codebooks.contiguous(), row_scales.contiguous(), distances,
        codes.shape[1], groups, M=num_codebooks, K=size, g=width, G=triton.next_power_of_2(width), N=TILE,
    )  # fmt: skip
    return distances


@triton.jit
def _walk(
    buffer, codes, codebooks, scales, chosen, order, changes, row_groups,
    M: tl.constexpr, K: tl.constexpr, C: tl.constexpr, g: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """One chosen group: every code in `order` becomes the nearest given the others; the lowest among equals."""
    group = tl.load(chosen + tl.program_id(0))
    entry, lane = tl.arange(0, C), tl.arange(0, G)
    within = lane < g
    both = (entry < K)[:, None] & within[None, :]
    scale = tl.load(scales + group // row_groups)
    residual = tl.load(buffer + group * g + lane, mask=within, other=0.0)
    residual = tl.div_rn(residual, tl.zeros((G,), tl.float32) + tl.where(scale == 0.0, 1.0, scale))
    for m in tl.static_range(M):
        code = tl.load(codes + group * M + m).to(tl.int32)
        residual -= tl.load(codebooks + (m * K + code) * g + lane, mask=within, other=0.0)
    changed = 0
    for turn in tl.static_range(M):
        m = tl.load(order + turn)
        old = tl.load(codes + group * M + m).to(tl.int32)
        residual += tl.load(codebooks + (m * K + old) * g + lane, mask=within, other=0.0)
        entries = tl.load(codebooks + (m * K + entry[:, None]) * g + lane[None, :], mask=both, other=0.0)
        away = entries - residual[None, :]
        distance = tl.where(entry < K, tl.sum(away * away, axis=1), float("inf"))
        new = tl.argmin(distance, axis=0).to(tl.int32)
        residual -= tl.load(codebooks + (m * K + new) * g + lane, mask=within, other=0.0)
        tl.store(codes + group * M + m, new.to(codes.dtype.element_ty))
        changed += (new != old).to(tl.int32)
    tl.store(changes + tl.program_id(0), changed)


def walk_triton(
    codes: Tensor, codebooks: Tensor, row_scales: Tensor, buffer: Tensor, chosen: Tensor, order: list[int]
) -> Tensor:
    """Re-encode the groups `chosen` (int64 [n]) in place, in the order of codebooks given; how many codes changed.

    codes: [out, in/g, M], contiguous; the rest float32 and contiguous.
    """
    num_codebooks, size, width = codebooks.shape
    changes = torch.empty(len(chosen), dtype=torch.int32, device=codes.device)
    turns = torch.tensor(order, dtype=torch.int32).to(codes.device, non_blocking=True)
    _walk[(len(chosen),)](
        buffer, codes, codebooks, row_scales, chosen, turns, changes, codes.shape[1],
        M=num_codebooks, K=size, C=triton.next_power_of_2(size), g=width, G=triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip
    return changes.sum()


def reencode_farthest_triton(
    codes: Tensor, codebooks: Tensor, row_scales: Tensor, buffer: Tensor, count: int, order: list[int]
) -> tuple[Tensor, Tensor]:
    """See `straight_through.reencode_farthest`; all but the codes in float32, codebooks of 16 to 256 entries."""
    distance = squared_distances_triton(codes, codebooks, row_scales, buffer)
    chosen = distance.topk(count, sorted=False).indices
    changed = walk_triton(codes, codebooks, row_scales, buffer, chosen, order)
    return dequantize(codes, codebooks, row_scales), changed
