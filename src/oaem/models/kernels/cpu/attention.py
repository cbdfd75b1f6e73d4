"""Causal attention of a whole model on the CPU.

torch's own walks the keys in small tiles whose products go through MKL, at a quarter of what the processor can do. Here
the queries are cut into chunks that look no further than they may, and every product is one large one in float32.
Scores and probabilities are never rounded to bfloat16. For the backward pass only the inputs are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from oaem.models.attention_switch import is_plainly_causal, switch_attention
from oaem.numerics.product import matrix_product

NAME = "oaem_cpu_causal"
CHUNK = 128  # queries of one head; the heads that share a key go together


def use_cpu_attention(module: torch.nn.Module) -> None:
    """See `attention.use_fast_attention`; no effect on a model that does not attend through torch's own."""
    switch_attention(module, NAME, _attend)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling Q K^T) V over the keys up to each query's own place; differentiable once.

    query: [batch, heads, tokens, d]. key, value: [batch, key heads, tokens, d], each serving heads / key heads
    consecutive heads. Works in float32, whatever the dtype; returns the dtype of `value`, [batch, tokens, heads, d].
    """
    attended: Tensor = _CausalAttention.apply(query, key, value, scaling)
    return attended


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        queries, keys, values = _grouped(query * scaling, len(key[0])), _float32(key), _float32(value)
        batch, heads, tokens, width = query.shape
        attended = value.new_empty(batch, tokens, heads, width)
        grouped = _grouped(attended.transpose(1, 2), len(key[0]))
        for place, start, stop in _chunks(keys):
            rows = queries[place][:, start:stop]
            weights = functional.softmax(_scores(rows, keys[place][:stop]), dim=-1)
            grouped[place][:, start:stop] = matrix_product(weights, values[place][:stop]).view(rows.shape)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        groups = key.shape[1]
        queries, keys, values = _grouped(query * ctx.scaling, groups), _float32(key), _float32(value)
        upper = _grouped(gradient.transpose(1, 2), groups)
        by_query, by_key, by_value = torch.empty(query.shape), torch.zeros(key.shape), torch.zeros(value.shape)
        grouped = _grouped(by_query, groups)
        for place, start, stop in _chunks(keys):
            rows, above = (part[place][:, start:stop].float().flatten(0, 1) for part in (queries, upper))
            scores = _scores(queries[place][:, start:stop], keys[place][:stop])
            with torch.enable_grad():
                weights = functional.softmax(scores.requires_grad_(), dim=-1)
            by_value[place][:stop] += matrix_product(weights.detach().t(), above)
            (change,) = torch.autograd.grad(weights, scores, matrix_product(above, values[place][:stop].t()))
            grouped[place][:, start:stop] = matrix_product(change, keys[place][:stop]).unflatten(0, (-1, stop - start))
            by_key[place][:stop] += matrix_product(change.t(), rows)
        return (by_query * ctx.scaling).to(query.dtype), by_key.to(key.dtype), by_value.to(value.dtype), None


def _grouped(heads: Tensor, groups: int) -> Tensor:
    """A view of [batch, heads, tokens, d] as [batch, key heads, heads that share the key, tokens, d]."""
    return heads.unflatten(1, (groups, -1))


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32, memory_format=torch.contiguous_format)


def _chunks(keys: Tensor) -> Iterator[tuple[tuple[int, int], int, int]]:
    """(sequence, key head) and the span of queries of each chunk, for keys [batch, key heads, tokens, d]."""
    for sequence in range(keys.shape[0]):
        for head in range(keys.shape[1]):
            for start in range(0, keys.shape[2], CHUNK):
                yield (sequence, head), start, min(start + CHUNK, keys.shape[2])


def _scores(rows: Tensor, keys: Tensor) -> Tensor:
    """Products of scaled queries [shared heads, n, d], the last n of their places, with keys [m, d]: [shared * n, m].

    Minus infinity where a query may not look.
    """
    count = rows.shape[1]
    scores = matrix_product(rows.float().flatten(0, 1), keys.t())
    # An addition, because masked_fill_ on a part of a matrix is slow on the CPU.
    scores.view(len(rows), count, -1)[..., -count:] += torch.full((count, count), float("-inf")).triu_(1)
    return scores


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not is_plainly_causal(module, query, key, attention_mask, options):
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    return causal_attention(query, key, value, options.get("scaling") or query.shape[-1] ** -0.5), None
