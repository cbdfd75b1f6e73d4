"""The gradient of causal attention on a CUDA device, with the same bits on every run and without atomics.

torch's fused ones add up the gradient of the queries in whatever order their programs finish, or wait for each other.
Here one kernel walks the queries of each tile of keys, another the keys of each tile of queries: scores are made twice,
nothing is shared. bfloat16 operands, float32 sums. With P the attention, O its output, dO the gradient that comes in:
dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = scaling dS K, dK = scaling dS^T Q.

With a WINDOW, which is 0 where nothing is hidden, query i sees the keys i - WINDOW < j <= i. A tile then sees whole the
tiles less than WINDOW // N tiles away, its own apart, and something of those up to 1 + (WINDOW - 2) // N tiles away.
"""

# ruff: noqa: N803  (capitals are compile-time constants, as everywhere in Triton)
# mypy: disallow_untyped_defs=False, disallow_incomplete_defs=False
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _row_sums(result, gradient, sums, heads, tokens, rb, rh, rt, gb, gh, gt, D: tl.constexpr, N: tl.constexpr):
    """sums [batch, heads, tokens] = rowsum(result * gradient)."""
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    row, lane = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, D)
    own = tl.load(result + batch * rb + head * rh + row[:, None] * rt + lane[None, :]).to(tl.float32)
    slope = tl.load(gradient + batch * gb + head * gh + row[:, None] * gt + lane[None, :]).to(tl.float32)
    tl.store(sums + pair.to(tl.int64) * tokens + row, tl.sum(own * slope, axis=1))


@triton.jit
def sees(row, column, WINDOW: tl.constexpr):
    """Whether the queries `row` see the keys `column`."""
    seen = column <= row
    if WINDOW:
        seen = seen & (column > row - WINDOW)
    return seen


@triton.jit
def first_keys(begin, N: tl.constexpr, WINDOW: tl.constexpr):
    """The first of the keys that a tile of queries sees anything of, and of those before it that it sees whole."""
    far = tl.maximum(begin - (1 + (WINDOW - 2) // N) * N, 0)
    return far, tl.maximum(tl.minimum(begin + N - WINDOW // N * N, begin), far)


@triton.jit
def _keys_walk(
    by_key, by_value, keys, values, queries, gradients, logs, sums, qt, gt, column, first, last, scale,
    D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add what queries first to last give to a tile of keys and values; `scale` has the factor log2(e)."""
    lane = tl.arange(0, D)
    for start in range(first, last, N):
        row = start + tl.arange(0, N)
        query = tl.load(queries + row[:, None] * qt + lane[None, :])
        above = tl.load(gradients + row[:, None] * gt + lane[None, :])
        weights = tl.exp2(tl.dot(keys, tl.trans(query)) * scale - tl.load(logs + row)[None, :] * LOG2_E)
        if MASK:
            weights = tl.where(sees(row[None, :], column[:, None], WINDOW), weights, 0.0)
        by_value = tl.dot(weights.to(above.dtype), above, by_value)
        change = weights * (tl.dot(values, tl.trans(above)) - tl.load(sums + row)[None, :])
        by_key = tl.dot(change.to(query.dtype), query, by_key)
    return by_key, by_value


@triton.jit
def _gradient_of_keys(
    queries, keys, values, gradient, logs, sums, by_key, by_value, heads, shared, tokens, scaling,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, gb, gh, gt, D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key head; by_key and by_value: contiguous [batch, tokens, key heads, D]."""
    pair, key_heads = tl.program_id(1), heads // shared
    batch, key_head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    begin = tl.program_id(0) * N
    column, lane = begin + tl.arange(0, N), tl.arange(0, D)
    key = tl.load(keys + batch * kb + key_head * kh + column[:, None] * kt + lane[None, :])
    value = tl.load(values + batch * vb + key_head * vh + column[:, None] * vt + lane[None, :])
    total_key, total_value = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    scale = scaling * LOG2_E
    end = tokens  # of the queries that see the whole tile
    if WINDOW:
        far = tl.minimum(begin + (2 + (WINDOW - 2) // N) * N, tokens)
        end = tl.minimum(tl.maximum(begin + WINDOW // N * N, begin + N), far)
    for other in range(0, shared):
        head = key_head * shared + other
        query, above = queries + batch * qb + head * qh, gradient + batch * gb + head * gh
        log, total = logs + (batch * heads + head) * tokens, sums + (batch * heads + head) * tokens
        total_key, total_value = _keys_walk(
            total_key, total_value, key, value, query, above, log, total, qt, gt, column, begin, begin + N, scale,
            D, N, WINDOW, True,
        )  # fmt: skip
        total_key, total_value = _keys_walk(
            total_key, total_value, key, value, query, above, log, total, qt, gt, column, begin + N, end, scale,
            D, N, WINDOW, False,
        )  # fmt: skip
        if WINDOW:
            total_key, total_value = _keys_walk(
                total_key, total_value, key, value, query, above, log, total, qt, gt, column, end, far, scale,
                D, N, WINDOW, True,
            )  # fmt: skip
    place = ((batch * tokens + column[:, None]) * key_heads + key_head) * D + lane[None, :]
    tl.store(by_key + place, (total_key * scaling).to(by_key.dtype.element_ty))
    tl.store(by_value + place, total_value.to(by_value.dtype.element_ty))


@triton.jit
def _queries_walk(
    by_query, query, above, log, total, keys, values, kt, vt, row, first, last, scale,
    D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Add what keys first to last give to a tile of queries."""
    lane = tl.arange(0, D)
    for start in range(first, last, N):
        column = start + tl.arange(0, N)
        key = tl.load(keys + column[:, None] * kt + lane[None, :])
        value = tl.load(values + column[:, None] * vt + lane[None, :])
        weights = tl.exp2(tl.dot(query, tl.trans(key)) * scale - log[:, None])
        if MASK:
            weights = tl.where(sees(row[:, None], column[None, :], WINDOW), weights, 0.0)
        change = weights * (tl.dot(above, tl.trans(value)) - total[:, None])
        by_query = tl.dot(change.to(key.dtype), key, by_query)
    return by_query


@triton.jit
def _gradient_of_queries(
    queries, keys, values, gradient, logs, sums, by_query, heads, shared, tokens, scaling,
    qb, qh, qt, kb, kh, kt, vb, vh, vt, gb, gh, gt, D: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; by_query: contiguous [batch, tokens, heads, D]."""
    pair = tl.program_id(1)
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    begin = (tl.num_programs(0) - 1 - tl.program_id(0)) * N  # the longest walks first
    row, lane = begin + tl.arange(0, N), tl.arange(0, D)
    query = tl.load(queries + batch * qb + head * qh + row[:, None] * qt + lane[None, :])
    above = tl.load(gradient + batch * gb + head * gh + row[:, None] * gt + lane[None, :])
    log = tl.load(logs + pair.to(tl.int64) * tokens + row) * LOG2_E
    total = tl.load(sums + pair.to(tl.int64) * tokens + row)
    key, value = keys + batch * kb + head // shared * kh, values + batch * vb + head // shared * vh
    scale = scaling * LOG2_E
    result = tl.zeros((N, D), tl.float32)
    near = 0  # the first of the keys that the whole tile sees
    if WINDOW:
        far, near = first_keys(begin, N, WINDOW)
        result = _queries_walk(
            result, query, above, log, total, key, value, kt, vt, row, far, near, scale, D, N, WINDOW, True
        )
    result = _queries_walk(
        result, query, above, log, total, key, value, kt, vt, row, near, begin, scale, D, N, WINDOW, False
    )
    result = _queries_walk(
        result, query, above, log, total, key, value, kt, vt, row, begin, begin + N, scale, D, N, WINDOW, True
    )
    place = ((batch * tokens + row[:, None]) * heads + head) * D + lane[None, :]
    tl.store(by_query + place, (result * scaling).to(by_query.dtype.element_ty))


def tiling(width: int) -> dict[str, int]:
    """Queries or keys at a time and the warps that share them: of 256 numbers each, registers hold half as many."""
    return {"N": 64, "num_warps": 4} if width <= 128 else {"N": 32, "num_warps": 8}


def attention_gradients_triton(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, logsumexp: Tensor, scaling: float,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by query, key and value, given that of the result.

    gradient, query, result: [batch, heads, tokens, d]; key, value: [batch, key heads, tokens, d]; all of one dtype, and
    such as `attention_switch.fits`. logsumexp: float32, contiguous, [batch, heads, tokens], of the scaled scores that
    are seen. A query sees its own place and the window - 1 before it, all of them if `window` is 0.
    """
    apart = query.shape[1] // key.shape[1] if query.shape[3] > 128 else 1
    if apart == 1:
        return _gradients(gradient, query, key, value, result, logsumexp, scaling, window, query.dtype)
    # A program walks all the heads that share its keys. Models with wide heads have few of both, hence few programs,
    # each of which takes long: here every head has keys of its own, and their gradients are added.
    key, value = (part.repeat_interleave(apart, 1) for part in (key, value))
    found = _gradients(gradient, query, key, value, result, logsumexp, scaling, window, torch.float32)
    by_key, by_value = (part.transpose(1, 2).unflatten(2, (-1, apart)).sum(3).to(query.dtype) for part in found[1:])
    return found[0], by_key.transpose(1, 2), by_value.transpose(1, 2)


def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, result: Tensor, logsumexp: Tensor, scaling: float,
    window: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The same by the kernels alone, those by key and value in `dtype`."""
    parts = [part if part.stride(3) == 1 else part.contiguous() for part in (query, key, value, gradient, result)]
    query, key, value, gradient, result = parts
    batch, heads, tokens, width = query.shape
    key_heads = key.shape[1]
    options = {"D": width, "WINDOW": window, "num_stages": 2} | tiling(width)
    tiles = tokens // options["N"]
    sums = torch.empty(batch, heads, tokens, device=query.device)
    _row_sums[(tiles, batch * heads)](
        result, gradient, sums, heads, tokens, *result.stride()[:3], *gradient.stride()[:3], D=width, N=options["N"]
    )
    by_query = query.new_empty(batch, tokens, heads, width)
    by_key, by_value = (query.new_empty(batch, tokens, key_heads, width, dtype=dtype) for _ in range(2))
    strides = [step for part in (query, key, value, gradient) for step in part.stride()[:3]]
    sizes = heads, heads // key_heads, tokens, scaling
    _gradient_of_keys[(tiles, batch * key_heads)](
        query, key, value, gradient, logsumexp, sums, by_key, by_value, *sizes, *strides, **options
    )
    _gradient_of_queries[(tiles, batch * heads)](
        query, key, value, gradient, logsumexp, sums, by_query, *sizes, *strides, **options
    )
    return by_query.transpose(1, 2), by_key.transpose(1, 2), by_value.transpose(1, 2)
