"""Causal attention for block tuning on a CUDA device: fused, in bfloat16, with the same bits on every run.

torch has no fused attention in float32. Its fused one in bfloat16 is what the model itself runs through, but it adds up
the gradient of the queries in whatever order its programs finish. The gradient is therefore that of our own kernels or,
where they do not fit, torch's told to be deterministic, which takes twice as long. That switch is global, and other
operations refuse to work under it, so it is thrown for this one gradient alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from oaem.models.attention_switch import has_operators, is_plainly_causal, switch_attention
from oaem.models.kernels.cuda.attention_gradients import attention_gradients_triton, fits

NAME = "oaem_causal"
_HAS_FLASH = has_operators("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling Q K^T) V over the keys up to each query's own place, in bfloat16 on a CUDA device.

    query: [batch, heads, tokens, d]. key, value: [batch, key heads, tokens, d]. Returns [batch, tokens, heads, d].
    """
    attended: Tensor = _Flash.apply(query.bfloat16(), key.bfloat16(), value.bfloat16(), scaling)
    return attended.transpose(1, 2)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        result, *rest, _ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal=True, scale=scaling
        )
        logsumexp, *state = rest
        ctx.save_for_backward(query, key, value, result, logsumexp)
        ctx.state, ctx.scaling = state, scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, result, logsumexp = ctx.saved_tensors
        if fits(query):
            logs = logsumexp.reshape(query.shape[:3]).contiguous()
            return *attention_gradients_triton(gradient, query, key, value, result, logs, ctx.scaling), None
        starts_q, starts_k, most_q, most_k, seed, offset = ctx.state
        with _deterministic():
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                gradient, query, key, value, result, logsumexp, starts_q, starts_k, most_q, most_k, 0.0, True,
                seed, offset, scale=ctx.scaling,
            )  # fmt: skip
        return *gradients, None


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # a module with a property, which type checkers do not see
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Else every new tensor would be filled first, which takes longer than the sums in order.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def fused_attention(block: nn.Module) -> Iterator[None]:
    """Let the block's attention go through `causal_attention` where it would have gone through torch's own."""
    switched = switch_attention(block, NAME, _attend)
    try:
        yield
    finally:
        for config in switched:
            config._attn_implementation = "sdpa"


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = is_plainly_causal(module, query, key, attention_mask, options)
    fits = _HAS_FLASH and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if not plain or not fits:
        # One dtype for torch's own, and plain operations: its other fused ones give other bits on every run.
        query, key, value = (part.float() for part in (query, key, value))
        with sdpa_kernel(SDPBackend.MATH):
            result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return causal_attention(query, key, value, scaling), None
