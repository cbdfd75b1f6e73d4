"""Causal attention for block tuning on a CUDA device: fused, in bfloat16, with the same bits on every run.

torch has no fused attention in float32. Its fused one in bfloat16 is what the model itself runs through, but it adds up
the gradient of the queries in whatever order its programs finish. The gradient is therefore that of our own kernels or,
where they do not fit, torch's told to be deterministic, which takes twice as long. That switch is global, and other
operations refuse to work under it, so it is thrown for this one gradient alone. A sliding window, which torch's fused
attention does not know, goes through our kernels both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakIdKeyDictionary

from oaem.models.attention_switch import fits, has_operators, is_causal, sliding_mask, switch_attention, window_of
from oaem.models.kernels.cuda.attention_gradients import attention_gradients_triton
from oaem.models.kernels.cuda.windowed_attention import windowed_attention_triton

NAME = "oaem_causal"
_HAS_FLASH = has_operators("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")
# Masks that have been looked at, with their version and window then, and whether they say that window and no more.
_seen: WeakIdKeyDictionary = WeakIdKeyDictionary()


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int = 0) -> Tensor:
    """softmax(scaling Q K^T) V over the keys up to each query's own place, in bfloat16 on a CUDA device.

    query: [batch, heads, tokens, d]. key, value: [batch, key heads, tokens, d]. window: how many keys, its own the
    last, a query sees, which is for `attention_switch.fits` alone; 0 for all. Returns [batch, tokens, heads, d].
    """
    attended: Tensor = _Fused.apply(query.bfloat16(), key.bfloat16(), value.bfloat16(), scaling, window)
    return attended.transpose(1, 2)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int) -> Tensor:
        if window:
            result, logsumexp = windowed_attention_triton(query, key, value, scaling, window)
        else:
            result, logsumexp, *ctx.state, _ = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, is_causal=True, scale=scaling
            )
        ctx.save_for_backward(query, key, value, result, logsumexp)
        ctx.scaling, ctx.window = scaling, window
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, logsumexp = ctx.saved_tensors
        if fits(query):
            logs = logsumexp.reshape(query.shape[:3]).contiguous()
            saved = query, key, value, result, logs
            return *attention_gradients_triton(gradient, *saved, ctx.scaling, ctx.window), None, None
        starts_q, starts_k, most_q, most_k, seed, offset = ctx.state
        with _deterministic():
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                gradient, query, key, value, result, logsumexp, starts_q, starts_k, most_q, most_k, 0.0, True,
                seed, offset, scale=ctx.scaling,
            )  # fmt: skip
        return *gradients, None, None


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

    window = window_of(key, options)
    ours = is_causal(module, query, key, options) and _serves(query, window)
    if not ours or not _says_no_more(attention_mask, query.shape[2], window):
        # One dtype for torch's own, and plain operations: its other fused ones give other bits on every run.
        query, key, value = (part.float() for part in (query, key, value))
        with sdpa_kernel(SDPBackend.MATH):
            result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return causal_attention(query, key, value, scaling, window), None


def _serves(query: Tensor, window: int) -> bool:
    return fits(query) if window else _HAS_FLASH and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _says_no_more(mask: Tensor | None, tokens: int, window: int) -> bool:
    """Whether a call's mask, if any, hides what the window and the order of the tokens hide, and nothing else.

    The host waits for the answer the first time that a mask comes: before a step is recorded, which has the same one.
    """
    if mask is None:
        return not window  # what torch's own attention takes it for
    asked = mask._version, tokens, window
    before, answer = _seen.get(mask, (None, False))
    if before != asked:
        alike = mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[2:] == (tokens, tokens)
        answer = alike and torch.equal(mask, sliding_mask(tokens, window, mask.device).expand_as(mask))
        _seen[mask] = asked, answer
    return bool(answer)
