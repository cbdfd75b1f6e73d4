"""Causal attention with a sliding window on a CUDA device, with the same bits on every run.

torch's fused attention takes no window, and its plain one makes every score, hidden or not. Here a tile of queries
walks the tiles of keys that it sees anything of, with a running maximum: nothing of the size of the scores is stored.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oaem.models.kernels.cuda.attention_gradients import LOG2_E, first_keys, sees, tiling

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _keys_walk(
    total, norm, top, query, keys, values, kt, vt, row, first, last, scale,
    D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add keys first to last to sums that are relative to 2 ** top; `scale` has the factor log2(e)."""
    lane = tl.arange(0, D)
    for start in range(first, last, N):
        column = start + tl.arange(0, N)
        key = tl.load(keys + column[:, None] * kt + lane[None, :])
        value = tl.load(values + column[:, None] * vt + lane[None, :])
        scores = tl.dot(query, tl.trans(key)) * scale
        if MASK:
            scores = tl.where(sees(row[:, None], column[None, :], WINDOW), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
        norm = norm * shrink + tl.sum(weights, axis=1)
        total = tl.dot(weights.to(value.dtype), value, total * shrink[:, None])
        top = higher
    return total, norm, top


@triton.jit
def _attend(
    queries, keys, values, result, logs, heads, shared, tokens, scaling, qb, qh, qt, kb, kh, kt, vb, vh, vt,
    D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; result: contiguous [batch, tokens, heads, D]."""
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * N  # the longest walks first
    row, lane = begin + tl.arange(0, N), tl.arange(0, D)
    query = tl.load(queries + batch * qb + head * qh + row[:, None] * qt + lane[None, :])
    key, value = keys + batch * kb + head // shared * kh, values + batch * vb + head // shared * vh
    scale = scaling * LOG2_E
    total, norm = tl.zeros((N, D), tl.float32), tl.zeros((N,), tl.float32)
    top = tl.full((N,), float("-inf"), tl.float32)
    far, near = first_keys(begin, N, WINDOW)
    # The own tile first: every query sees itself, so that `top` is a number from here on.
    total, norm, top = _keys_walk(
        total, norm, top, query, key, value, kt, vt, row, begin, begin + N, scale, D, N, WINDOW, True
    )
    total, norm, top = _keys_walk(
        total, norm, top, query, key, value, kt, vt, row, near, begin, scale, D, N, WINDOW, False
    )
    total, norm, top = _keys_walk(
        total, norm, top, query, key, value, kt, vt, row, far, near, scale, D, N, WINDOW, True
    )
    place = ((batch * tokens + row[:, None]) * heads + head) * D + lane[None, :]
    tl.store(result + place, (total / norm[:, None]).to(result.dtype.element_ty))
    tl.store(logs + pair.to(tl.int64) * tokens + row, (top + tl.log2(norm)) * LN_2)


def windowed_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int
) -> tuple[Tensor, Tensor]:
    """softmax(scaling Q K^T) V over each query's own place and the window - 1 before it; log-sums of those scores.

    query: [batch, heads, tokens, d]; key, value: [batch, key heads, tokens, d]; of one dtype, and such as
    `attention_switch.fits`. window: at least 1. Sums are float32; of bfloat16 operands the weights are rounded to
    bfloat16 before they meet the values. Returns the result in that dtype, [batch, heads, tokens, d], in memory
    [batch, tokens, heads, d], and float32 [batch, heads, tokens].
    """
    query, key, value = (part if part.stride(3) == 1 else part.contiguous() for part in (query, key, value))
    batch, heads, tokens, width = query.shape
    result = query.new_empty(batch, tokens, heads, width)
    logs = torch.empty(batch, heads, tokens, device=query.device)
    strides = [step for part in (query, key, value) for step in part.stride()[:3]]
    options = {"D": width, "WINDOW": window, "num_stages": 2} | tiling(width)
    _attend[(tokens // options["N"], batch * heads)](
        query, key, value, result, logs, heads, heads // key.shape[1], tokens, scaling, *strides, **options
    )
    return result.transpose(1, 2), logs
