"""Causal attention in float32 for block tuning on a CUDA device.

torch has no fused float32 attention for grouped heads: it computes the whole square of scores, adds a mask, and keeps
both for the backward pass. Here the queries are cut into chunks that look no further than they may, which halves the
square, and only the last square of a chunk needs a mask. Plain products and softmax, so every run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAME = "oaem_causal"
CHUNK = 512  # queries


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling Q K^T) V over the keys up to each query's own place.

    query: [batch, heads, tokens, d]. key, value: [batch, key heads, tokens, d]. Returns [batch, tokens, heads, d].
    """
    key_heads, tokens = key.shape[1:3]
    # Heads that share a key stand side by side, as rows of one product.
    grouped = (query * scaling).unflatten(1, (key_heads, -1))  # [batch, key heads, shared, tokens, d]
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=query.device).triu(1)
    parts = []
    for start in range(0, tokens, CHUNK):
        stop = min(start + CHUNK, tokens)
        rows = grouped[..., start:stop, :].flatten(2, 3)
        scores = (rows @ key[:, :, :stop].transpose(2, 3)).unflatten(2, (-1, stop - start))
        scores[..., start:].masked_fill_(future[: stop - start, : stop - start], float("-inf"))
        weights = torch.softmax(scores, dim=-1).flatten(2, 3)
        parts.append((weights @ value[:, :, :stop]).unflatten(2, (-1, stop - start)))
    return torch.cat(parts, dim=3).flatten(1, 2).transpose(1, 2).contiguous()


@contextmanager
def chunked_attention(block: nn.Module) -> Iterator[None]:
    """Let the block's attention go through `causal_attention` where it would have gone through torch's own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    configs: dict[int, Any] = {
        id(module.config): module.config for module in block.modules() if hasattr(module, "config")
    }
    switched = [config for config in configs.values() if config._attn_implementation == "sdpa"]
    try:
        for config in switched:
            config._attn_implementation = NAME
        yield
    finally:
        for config in switched:
            config._attn_implementation = "sdpa"


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = attention_mask is None and key.shape[2] == query.shape[2] and getattr(module, "is_causal", True)
    if not plain or options.get("dropout") or query.requires_grad is False or options.get("sliding_window"):
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return causal_attention(query, key, value, scaling), None
